//! Shows a frame on a terminal or as text.

use comfy_table::{CellAlignment, ContentArrangement, presets};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use humansize::{DECIMAL, format_size};
use jiff::tz::TimeZone;
use ratatui::{
    layout::{Alignment, Constraint, Layout},
    style::{Color, Style, Stylize as _},
    text::{Line, Text},
    widgets::{Cell, Row, Table},
};

use super::{CgroupFrame, Frame, LinkFrame, MemberFrame, PolicyFrame};
use crate::model::quote::shown;

const HEADER: [&str; 7] = ["POLICY / CGROUP", "UPLINK", "SOCKETS/s", "LINK", "PACKETS/s", "BYTES/s", "STOPPED/s"];
const COLUMNS: [Constraint; 7] = [
    Constraint::Fill(3),
    Constraint::Length(20),
    Constraint::Length(9),
    Constraint::Length(15),
    Constraint::Length(9),
    Constraint::Length(9),
    Constraint::Fill(2),
];
/// The columns of terminals that are at least this wide. Without a column of its own, a link is shown in that of the uplink: no row has
/// both.
const SHOWN: [(u16, &[usize]); 3] = [(100, &[0, 1, 2, 3, 4, 5, 6]), (76, &[0, 1, 2, 5, 6]), (0, &[0, 1, 5])];
const UPLINK: usize = 1;
const LINK: usize = 3;
/// The columns with numbers.
const NUMBERS: [usize; 3] = [2, 4, 5];
const KEYS: &str = "q quits   s sorts   ↑↓ scroll   p pauses";

/// The sort order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// By name and path.
    #[default]
    Name,
    /// Most bytes first.
    Bytes,
    /// Most sockets first.
    Sockets,
    /// Most stopped attempts first.
    Stopped,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Bytes,
            Self::Bytes => Self::Sockets,
            Self::Sockets => Self::Stopped,
            Self::Stopped => Self::Name,
        }
    }

    fn sort(self, frame: &mut Frame) {
        use std::cmp::Reverse;
        let bytes = |cgroup: &CgroupFrame| cgroup.links.iter().map(|link| link.bytes).sum::<u64>();
        for policy in &mut frame.policies {
            match self {
                Self::Name | Self::Stopped => policy.cgroups.sort_by(|a, b| a.path.cmp(&b.path)),
                Self::Bytes => policy.cgroups.sort_by_key(|cgroup| Reverse(bytes(cgroup))),
                Self::Sockets => policy.cgroups.sort_by_key(|cgroup| Reverse(cgroup.sockets)),
            }
        }
        match self {
            Self::Name => frame.policies.sort_by(|a, b| a.name.cmp(&b.name)),
            Self::Bytes => frame.policies.sort_by_key(|policy| Reverse(policy.sent().1)),
            Self::Sockets => frame.policies.sort_by_key(|policy| Reverse(policy.sockets)),
            Self::Stopped => frame.policies.sort_by_key(|policy| Reverse(policy.blocked())),
        }
    }
}

/// The kind of a row, which selects its style.
#[derive(Clone, Copy)]
enum Kind {
    Policy,
    Missing,
    Cgroup,
    Stopped,
}

impl Kind {
    fn style(self) -> Style {
        match self {
            Self::Policy => Style::new().bold(),
            Self::Missing => Style::new().bold().fg(Color::Red),
            Self::Cgroup => Style::new(),
            Self::Stopped => Style::new().fg(Color::Red),
        }
    }
}

/// A frame as a table of plain text, with the columns that a terminal of this width has.
pub fn text(mut frame: Frame, sort: Sort, width: Option<usize>) -> String {
    sort.sort(&mut frame);
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING);
    let columns = width.map_or(SHOWN[0].1, |width| shown_columns(u16::try_from(width).unwrap_or(u16::MAX)));
    table.set_header(columns.iter().map(|&column| HEADER[column]));
    for (_, cells) in rows(&frame) {
        let cells = narrowed(columns, cells);
        table.add_row(columns.iter().map(|&column| &cells[column]));
    }
    for (position, column) in columns.iter().enumerate() {
        if let Some(shown) = table.column_mut(position) {
            shown.set_padding((0, 2));
            if NUMBERS.contains(column) {
                shown.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let fits = |text: &String| width.is_none_or(|width| text.lines().all(|line| line.chars().count() <= width));
    let text = table.trim_fmt();
    let text = if fits(&text) {
        text
    } else {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width.unwrap_or_default()).unwrap_or(u16::MAX)).trim_fmt()
    };
    format!("{}\n{text}\n", title(&frame))
}

/// The state of the terminal's screen.
#[derive(Debug, Default)]
pub struct Screen {
    frame: Option<Frame>,
    sort: Sort,
    /// The number of rows scrolled out at the top.
    above: usize,
    paused: bool,
}

impl Screen {
    /// A screen without a frame.
    pub fn new(sort: Sort) -> Self {
        Self { sort, ..Self::default() }
    }

    /// The frame that is shown, and the order of its rows.
    pub fn into_frame(self) -> Option<(Frame, Sort)> {
        Some((self.frame?, self.sort))
    }

    /// Sets the frame to show, unless the screen is paused.
    pub fn show(&mut self, frame: Frame) {
        if !self.paused {
            self.frame = Some(frame);
        }
    }

    /// Handles a key. False: the user quits.
    pub fn obey(&mut self, key: KeyEvent) -> bool {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Down => self.above += 1,
            KeyCode::PageDown => self.above += 10,
            KeyCode::Up => self.above = self.above.saturating_sub(1),
            KeyCode::PageUp => self.above = self.above.saturating_sub(10),
            KeyCode::Home => self.above = 0,
            _ => {}
        }
        true
    }

    /// Draws the frame.
    pub fn draw(&mut self, terminal: &mut ratatui::Frame<'_>) {
        let [top, middle, bottom] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
                .areas(terminal.area());
        let Some(frame) = &mut self.frame else {
            terminal.render_widget(Line::from("steer: counting"), top);
            return;
        };
        self.sort.sort(frame);
        let rows = rows(frame);
        // Keep the last row visible.
        self.above = self.above.min(rows.len().saturating_sub(1));
        let width = terminal.area().width;
        let columns = shown_columns(width);
        let widths: Vec<Constraint> = columns.iter().map(|&column| COLUMNS[column]).collect();
        let first =
            Layout::horizontal(&widths).spacing(1).split(middle).first().map_or(0, |area| usize::from(area.width));
        let shown = rows.into_iter().skip(self.above).map(|(kind, cells)| {
            let mut cells = narrowed(columns, cells);
            cells[0] = fitted(&cells[0], first);
            let cell = |&column: &usize| Cell::from(Text::from(cells[column].clone()).alignment(alignment(column)));
            Row::new(columns.iter().map(cell)).style(kind.style())
        });
        let header = columns.iter().map(|&column| Text::from(HEADER[column]).alignment(alignment(column)));
        let table = Table::new(shown, widths).header(Row::new(header).style(Style::new().reversed()));
        terminal.render_widget(Line::from(title(frame)), top);
        terminal.render_widget(table, middle);
        let state = if self.paused { "   PAUSED" } else { "" };
        let sort = format!("{:?}", self.sort).to_lowercase();
        terminal.render_widget(Line::from(format!("{KEYS}   by {sort}{state}")).dim(), bottom);
    }
}

/// The columns that a terminal of this width has.
fn shown_columns(width: u16) -> &'static [usize] {
    SHOWN.iter().find(|(least, _)| width >= *least).map_or(&[], |(_, columns)| columns)
}

/// The cells of a row where not all columns are shown.
fn narrowed(columns: &[usize], mut cells: [String; 7]) -> [String; 7] {
    if !columns.contains(&LINK) && cells[UPLINK].is_empty() {
        cells[UPLINK] = std::mem::take(&mut cells[LINK]);
    }
    cells
}

/// A text that ends as a longer one does: the end of a cgroup's path says most.
fn fitted(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let left = width.saturating_sub(1);
    std::iter::once('…').chain(text.chars().skip(length - left)).collect()
}

fn alignment(column: usize) -> Alignment {
    if NUMBERS.contains(&column) { Alignment::Right } else { Alignment::Left }
}

fn title(frame: &Frame) -> String {
    let policies = &frame.policies;
    let cgroups: usize = policies.iter().map(|policy| policy.cgroups.len()).sum();
    let counted = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    format!(
        "steer  {}  {}, {}",
        frame.time.to_zoned_datetime(TimeZone::system()).strftime("%H:%M:%S"),
        counted(policies.len(), "policy", "policies"),
        counted(cgroups, "cgroup", "cgroups")
    )
}

fn rows(frame: &Frame) -> Vec<(Kind, [String; 7])> {
    let seconds = frame.seconds;
    let rows = frame.policies.iter().flat_map(|policy| policy_rows(policy, seconds));
    rows.map(|(kind, cells)| (kind, cells.map(|cell| shown(&cell).to_string()))).collect()
}

fn policy_rows(policy: &PolicyFrame, seconds: f64) -> Vec<(Kind, [String; 7])> {
    let (packets, bytes) = policy.sent();
    let reason = |why: &str| why.strip_prefix("stopped_").unwrap_or(why).to_owned();
    let blocked = policy.blocked.iter().map(|(why, count)| format!("{} {}", reason(why), rate(*count, seconds)));
    let observed = (policy.observed > 0).then(|| format!("observed {}", rate(policy.observed, seconds)));
    let blocked: Vec<_> = blocked.chain(observed).collect();
    let (kind, uplink) = match (&policy.interface, policy.ifindex) {
        (None, _) => (Kind::Policy, "none (exempt)".to_owned()),
        (Some(group), None) if !policy.members.is_empty() => group_of(group, &policy.members),
        (Some(interface), Some(ifindex)) => (Kind::Policy, format!("{interface} ({ifindex})")),
        (Some(interface), None) => (Kind::Missing, format!("{interface} (missing)")),
    };
    let whole = [
        policy.name.clone(),
        uplink,
        rate(policy.sockets, seconds),
        String::new(),
        rate(packets, seconds),
        size(bytes, seconds),
        blocked.join(", "),
    ];
    let cgroups = policy.cgroups.iter().flat_map(|cgroup| cgroup_rows(cgroup, seconds));
    std::iter::once((kind, whole)).chain(cgroups).collect()
}

/// A group of uplinks: its chosen members, with their states unless they are up.
fn group_of(group: &str, members: &[MemberFrame]) -> (Kind, String) {
    let chosen = members.iter().filter(|member| member.chosen);
    let chosen: Vec<_> = chosen
        .map(|member| match member.state.as_str() {
            "up" => member.interface.clone(),
            state => format!("{} {state}", member.interface),
        })
        .collect();
    if chosen.is_empty() {
        return (Kind::Missing, format!("{group}: closed"));
    }
    (Kind::Policy, format!("{group}: {}", chosen.join(", ")))
}

fn cgroup_rows(cgroup: &CgroupFrame, seconds: f64) -> Vec<(Kind, [String; 7])> {
    let path = cgroup.path.as_ref().map_or_else(|| format!("{} (removed)", cgroup.id), ToString::to_string);
    let mut first = [format!("  {path}"), String::new(), rate(cgroup.sockets, seconds)];
    let mut rows = Vec::new();
    for link in &cgroup.links {
        let [path, uplink, sockets] = std::mem::take(&mut first);
        let kind = if link.stopped { Kind::Stopped } else { Kind::Cgroup };
        let cells = [
            path,
            uplink,
            sockets,
            link_name(link),
            rate(link.packets, seconds),
            size(link.bytes, seconds),
            String::new(),
        ];
        rows.push((kind, cells));
    }
    if rows.is_empty() {
        let [path, uplink, sockets] = first;
        rows.push((Kind::Cgroup, [path, uplink, sockets, String::new(), String::new(), String::new(), String::new()]));
    }
    rows
}

fn link_name(link: &LinkFrame) -> String {
    let name = link.interface.clone().unwrap_or_else(|| format!("#{}", link.ifindex));
    if link.stopped { format!("{name} STOPPED") } else { name }
}

#[expect(clippy::cast_precision_loss, reason = "rounded anyway")]
fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// The rate of a count per second. Below ten it has one decimal.
fn rate(count: u64, seconds: f64) -> String {
    match per_second(count, seconds) {
        0.0 => "0".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded anyway")]
fn size(bytes: u64, seconds: f64) -> String {
    format_size(per_second(bytes, seconds).round() as u64, DECIMAL)
}

#[cfg(test)]
mod tests;
