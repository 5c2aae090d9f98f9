use std::collections::BTreeMap;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;
use ratatui::{Terminal, backend::TestBackend};

use super::{Screen, Sort, text};
use crate::{
    model::spec::Enforce,
    observe::top::{CgroupFrame, Frame, LinkFrame, PolicyFrame},
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
        enforce: Enforce::Strict,
        sockets: 30,
        blocked: BTreeMap::from([("stopped_egress".to_owned(), 4)]),
        cgroups: vec![cgroup("/a", vec![link(Some("wg0"), 7, 2400, false), link(Some("eth0"), 3, 4, true)])],
    };
    let backup = PolicyFrame {
        name: "backup".to_owned(),
        interface: Some("eth1".to_owned()),
        ifindex: None,
        sockets: 0,
        blocked: BTreeMap::new(),
        cgroups: vec![cgroup("/b", Vec::new())],
        ..vpn.clone()
    };
    Frame { time: Timestamp::UNIX_EPOCH, seconds: 2.0, policies: vec![vpn, backup] }
}

fn drawn(screen: &mut Screen, rows: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(110, rows)).expect("a terminal");
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
    assert_eq!(words(&lines[0]), ["steer", "1970-01-01T00:00:00Z", "2", "policies,", "2", "cgroups"]);
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
    let text = text(frame(), Sort::Blocked);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("steer  1970"), "{text}");
    assert_eq!(words(lines[2])[0], "vpn");
    assert!(lines.iter().any(|line| words(line) == ["eth0", "STOPPED", "2.0", "2", "kB"]), "{text}");
}
