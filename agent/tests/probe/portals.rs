//! Captive portals, which answer in place of the target.

use steer::host::probe::Failure;

use crate::bed::{FAMILIES, LONG, bed};

#[test]
fn a_portal_is_no_answer() {
    let Some(bed) = bed() else { return };
    let (http, https) = (bed.servers.http, bed.servers.https);
    for family in FAMILIES {
        for via in bed.members(family) {
            for (path, want) in [
                ("/204", Ok(())),
                ("/redirect", Err(Failure::Status(302))),
                ("/portal", Err(Failure::Status(200))),
                ("/portal status=200", Ok(())),
                ("/portal status=200 body=Success", Err(Failure::Body(200))),
                ("/portal body=Success", Err(Failure::Body(200))),
                ("/page body=Success", Ok(())),
                ("/redirect body=Success", Err(Failure::Status(302))),
                ("/late body=Success", Err(Failure::Body(200))),
                ("/late status=200", Ok(())),
                ("/204 body=Success", Err(Failure::Body(204))),
                ("/none", Err(Failure::Ended)),
                ("/part body=Success", Err(Failure::Ended)),
            ] {
                let target = format!("http://probe.test:{http}{path}");
                assert_eq!(bed.ask(&target, via, LONG).map(drop), want, "{target} by {via:?}");
            }
            // The certificate proves who answers.
            for (path, want) in [("/portal", Ok(())), ("/redirect", Err(Failure::Status(302)))] {
                let target = format!("https://probe.test:{https}{path}");
                assert_eq!(bed.ask(&target, via, LONG).map(drop), want, "{target} by {via:?}");
            }
        }
    }
    let garbage = bed.ask(&format!("http://probe.test:{http}/garbage"), bed.bound(1, FAMILIES[0]), LONG);
    assert!(matches!(garbage, Err(Failure::Protocol(_))), "{garbage:?}");
}

#[test]
fn failures_are_short_texts() {
    for (failure, want) in [
        (Failure::Timeout, "no answer in time"),
        (Failure::Status(302), "status 302: a captive portal, or not the expected server"),
        (Failure::Answer("SERVFAIL".to_owned()), "the name server answers SERVFAIL"),
    ] {
        assert_eq!(failure.to_string(), want);
    }
}
