//! What is reported.

use std::time::Duration;

use steer::host::route::{Notified, Watch, write};

use crate::bed::{Bed, bed, run};

const LONG: Duration = Duration::from_secs(10);

#[test]
fn changes_are_reported_and_nothing_else() {
    let Some(bed) = bed() else { return };
    let watch = bed.host.run(Watch::new).expect("a namespace").expect("a watch");
    assert!(!watch.take().expect("reports"));
    for command in [
        "rule add pref 77 lookup 77",
        "-6 rule add pref 77 lookup 77",
        "route add 10.77.0.0/16 via 192.168.1.1",
        "-6 route add 2001:db8::/32 via fd01::1",
        "address add 10.77.0.1/32 dev eth0",
        "-6 address add fd77::1/128 dev eth0 nodad",
        "link add br77 type bridge",
        "link set eth1 down",
    ] {
        bed.ip(command);
        assert!(watch.wait(LONG).expect("reports"), "{command}");
    }
    while watch.wait(Duration::from_millis(100)).expect("reports") {}
    bed.ip("route show table all");
    assert!(!watch.wait(Duration::from_millis(50)).expect("reports"), "reading is no change");
}

#[test]
fn what_others_remove_is_seen_and_written_again() {
    let Some(bed) = bed() else { return };
    let wanted = Bed::wanted(vec![bed.policy(1, "up0")], vec![]);
    let watch = bed.host.run(Watch::new).expect("a namespace").expect("a watch");
    bed.write(&wanted);
    let before = bed.plan(&wanted);
    while watch.wait(Duration::from_millis(50)).expect("reports") {}
    for command in [
        "rule del pref 40001",
        "rule del pref 0 fwmark 0x80000000/0x80000000 goto 40000",
        "-6 rule del pref 40000",
        "route flush table 1931091969",
        "-6 rule del pref 40999",
    ] {
        bed.ip(command);
        assert!(watch.wait(LONG).expect("reports"), "{command}");
        let (plan, state) = (bed.plan(&wanted), bed.state());
        assert_eq!(plan, before);
        let changes = bed.host.run(|| write(&plan, &state, Some(&before))).expect("a namespace").expect("written");
        assert!(!changes.restored.is_empty() && changes.restored.len() == changes.written, "{command}: {changes:?}");
        // Steer's own changes are reported, and end there.
        assert!(watch.wait(LONG).expect("reports"));
        assert!(steer::host::route::steps(&bed.plan(&wanted), &bed.state()).is_empty());
        while watch.wait(Duration::from_millis(20)).expect("reports") {}
    }
}

#[test]
fn reports_in_a_runtime() {
    let Some(bed) = bed() else { return };
    let host = bed.host.clone();
    let reported = bed.host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut notified = Notified::new()?;
            run(&host, "route add 10.77.0.0/16 via 192.168.1.1");
            tokio::time::timeout(LONG, notified.changed()).await??;
            let nothing = tokio::time::timeout(Duration::from_millis(50), notified.changed()).await;
            assert!(nothing.is_err(), "one change, one report");
            Ok::<_, std::io::Error>(())
        })
    });
    reported.expect("a namespace").expect("a report");
}

#[test]
fn rules_of_others_in_front_are_named() {
    let Some(bed) = bed() else { return };
    bed.ip("rule add pref 0 not fwmark 0xca6c lookup 51820");
    let wanted = Bed::wanted(vec![bed.policy(1, "up0")], vec![]);
    bed.write(&wanted);
    let plan = bed.plan(&wanted);
    assert!(plan.in_front.iter().any(|rule| rule.contains("51820")), "{:?}", plan.in_front);
    assert_eq!(plan.in_front.len(), 1);
}
