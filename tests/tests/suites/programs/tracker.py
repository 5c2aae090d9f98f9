"""A tracker with one peer. Arguments: the address of the peer, which is also its own, and the port of the peer."""

import http.server
import ipaddress
import sys

PEER = ipaddress.IPv4Address(sys.argv[1]).packed + int(sys.argv[2]).to_bytes(2, "big")


class Tracker(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"d8:completei1e10:incompletei0e8:intervali60e5:peers6:" + PEER + b"e")


http.server.HTTPServer((sys.argv[1], 80), Tracker).serve_forever()
