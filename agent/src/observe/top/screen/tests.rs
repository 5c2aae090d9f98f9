use std::collections::BTreeMap;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;
use ratatui::{Terminal, backend::TestBackend};

use super::{Screen, Sort, text};
use crate::{
    model::spec::Enforce,
    observe::top::{CgroupFrame, Frame, LinkFrame, MemberFrame, PolicyFrame},
};

fn link(interface: Option<&str>, ifindex: u32, packets: u64, stopped: bool) -> LinkFrame {
    LinkFrame { interface: interface.map(str::to_owned), ifindex, packets, bytes: packets * 1000, stopped }
}

fn cgroup(path: &str, links: Vec<LinkFrame>) -> CgroupFrame {
    CgroupFrame { path: Some(path.parse().expect("a path")), id: 1, sockets: 3, links }
}

fn frame() -> Frame {
    let vpn = PolicyFrame {
        name: "vpn".to_owned(),
        interface: Some("wg0".to_owned()),
        ifindex: Some(7),
        members: Vec::new(),
        enforce: Enforce::Strict,
        sockets: 30,
        blocked: BTreeMap::from([("stopped_egress".to_owned(), 4)]),
        observed: 0,
        cgroups: vec![cgroup("/a", vec![link(Some("wg0"), 7, 2400, false), link(Some("eth0"), 3, 4, true)])],
    };
    let backup = PolicyFrame {
        name: "backup".to_owned(),
        interface: Some("eth1".to_owned()),
        ifindex: None,
        sockets: 0,
        blocked: BTreeMap::new(),
        observed: 0,
        cgroups: vec![cgroup("/b", Vec::new())],
        ..vpn.clone()
    };
    Frame { time: Timestamp::UNIX_EPOCH, seconds: 2.0, policies: vec![vpn, backup] }
}

fn drawn(screen: &mut Screen, rows: u16) -> Vec<String> {
    drawn_on(screen, 110, rows)
}

fn drawn_on(screen: &mut Screen, columns: u16, rows: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a terminal");
    terminal.draw(|frame| screen.draw(frame)).expect("a screen");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..buffer.area.height).map(|y| line(y).trim_end().to_owned()).collect()
}

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

/// The words of a line.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn policies_and_cgroups_by_link() {
    let mut screen = Screen::default();
    screen.show(frame());
    let lines = drawn(&mut screen, 9);
    let title = words(&lines[0]);
    assert!(
        title[0] == "steer" && title[1].len() == "00:00:00".len() && title[2..] == ["2", "policies,", "2", "cgroups"]
    );
    assert_eq!(words(&lines[2]), ["backup", "eth1", "(missing)", "0", "0", "0", "B"]);
    assert_eq!(words(&lines[3]), ["/b", "1.5"]);
    assert_eq!(words(&lines[4]), ["vpn", "wg0", "(7)", "15", "1200", "1.20", "MB", "egress", "2.0"]);
    assert_eq!(words(&lines[5]), ["/a", "1.5", "wg0", "1200", "1.20", "MB"]);
    assert_eq!(words(&lines[6]), ["eth0", "STOPPED", "2.0", "2", "kB"]);
    assert!(lines[8].contains("by name"), "{lines:?}");
}

#[test]
fn keys() {
    let mut screen = Screen::default();
    screen.show(frame());
    assert!(screen.obey(key(KeyCode::Char('s'))));
    assert_eq!(words(&drawn(&mut screen, 9)[2])[0], "vpn", "most bytes first");
    assert!(screen.obey(key(KeyCode::Char('p'))));
    screen.show(Frame { policies: Vec::new(), ..frame() });
    assert!(drawn(&mut screen, 9)[8].ends_with("PAUSED"));
    assert_eq!(words(&drawn(&mut screen, 9)[2])[0], "vpn", "the frame stays while paused");
    assert!(screen.obey(key(KeyCode::PageDown)));
    assert_eq!(words(&drawn(&mut screen, 9)[2])[0], "/b", "the last row stays visible");
    assert!(!screen.obey(key(KeyCode::Char('q'))));
    assert!(!screen.obey(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn text_without_a_terminal() {
    let narrow = text(frame(), Sort::Name, Some(60));
    assert!(narrow.lines().all(|line| line.chars().count() <= 60) && narrow.contains("BYTES/s"), "{narrow}");
    let text = text(frame(), Sort::Stopped, None);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("steer  "), "{text}");
    assert_eq!(words(lines[2])[0], "vpn");
    assert!(lines.iter().any(|line| words(line) == ["eth0", "STOPPED", "2.0", "2", "kB"]), "{text}");
}

#[test]
fn narrow_terminals_keep_the_first_column() {
    let mut screen = Screen::default();
    let mut narrow = frame();
    let path = "/system.slice/system-transmission.slice/transmission-daemon.service";
    narrow.policies[0].cgroups[0].path = Some(path.parse().expect("a path"));
    screen.show(narrow);
    for columns in [60, 80] {
        let lines = drawn_on(&mut screen, columns, 9);
        assert_eq!(words(&lines[2])[..3], ["backup", "eth1", "(missing)"], "{lines:?}");
        assert!(lines[5].starts_with('…') && words(&lines[5])[0].ends_with("daemon.service"), "{lines:?}");
        assert_eq!(words(&lines[5])[1], "wg0", "{lines:?}");
        assert_eq!(words(&lines[6])[..2], ["eth0", "STOPPED"], "{lines:?}");
    }
}

#[test]
fn a_group_shows_the_chosen_member_and_its_state() {
    let member = |interface: &str, chosen, state: &str| MemberFrame {
        interface: interface.to_owned(),
        chosen,
        state: state.to_owned(),
    };
    let uplink = |members: Vec<MemberFrame>| {
        let mut with_group = frame();
        let policy = &mut with_group.policies[0];
        (policy.interface, policy.ifindex, policy.members) = (Some("lines".to_owned()), None, members);
        let mut screen = Screen::default();
        screen.show(with_group);
        words(&drawn(&mut screen, 9)[4])[1..4].join(" ")
    };
    let down = || member("wg0", false, "down");
    assert_eq!(uplink(vec![down(), member("wg1", true, "up")]), "lines: wg1 15");
    assert_eq!(uplink(vec![down(), member("wg1", true, "suspect")]), "lines: wg1 suspect");
    assert_eq!(uplink(vec![down()]), "lines: closed 15");
}
