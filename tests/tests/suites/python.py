"""Runs modules of CPython's own tests. Prints the result and the name of each test, and writes failures to standard error."""

import sys
import unittest

from test import support


class Lines(unittest.TestResult):
    def line(self, test, result):
        print(f"{result}\t{test.id()}", flush=True)

    def failed(self, test, reasons):
        self.line(test, "FAIL")
        print(reasons[-1][1], file=sys.stderr, flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.line(test, "PASS")

    def addSkip(self, test, why):
        super().addSkip(test, why)
        self.line(test, "SKIP")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.failed(test, self.failures)

    def addError(self, test, error):
        super().addError(test, error)
        self.failed(test, self.errors)

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.line(test, "PASS")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.line(test, "FAIL")

    def addSubTest(self, test, sub, error):
        super().addSubTest(test, sub, error)
        if error is not None:
            self.failed(sub, [(sub, str(error[1]))])


# Without tests that need the Internet.
support.use_resources = {"walltime": None, "cpu": None}
for name in sys.argv[1:]:
    unittest.defaultTestLoader.loadTestsFromName(name).run(Lines())
