//! The table and the goals of this measurement.
//!
//! **Invariant:** the JSON contains every printed number.

use std::fmt;

use anyhow::Result;

use super::{Crowd, INTERVALS_MS, Report, SHARED, Switch};
use crate::goal::Goal;

/// For each interval of probes: how long new connections may go by the dead line, in milliseconds: median, and 99 of 100.
const DEAD_MS: [[f64; 2]; 2] = [[3_000.0, 5_000.0], [1_200.0, 1_200.0]];

impl Report {
    /// Prints it with its goals.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
        } else {
            println!("{self}");
            self.goals().iter().for_each(|goal| println!("{goal}"));
        }
        Ok(())
    }

    pub(crate) fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for ((switch, interval), [median, p99]) in self.black_hole.iter().zip(INTERVALS_MS).zip(DEAD_MS) {
            let what = format!("with three probes, {interval} ms apart, new connections leave a dead line");
            let Switch { connected_ms, .. } = switch;
            goals.push(Goal::new(format!("{what} within {median} ms"), vec![connected_ms.median], |ms| ms < median));
            goals.push(Goal::new(format!("{what} within {p99} ms, 99 of 100 times"), vec![connected_ms.p99], |ms| {
                ms < p99
            }));
        }
        let carrier = [self.carrier, self.many].map(|switch| switch.connected_ms.p99).to_vec();
        goals.push(Goal::new("new connections leave a line without carrier within 100 ms", carrier, |ms| ms < 100.0));
        let late = vec![f64::from(u32::try_from(self.crowd.late).unwrap_or(u32::MAX))];
        goals.push(Goal::new("no socket is made on the old member after the switch", late, |late| late < 1.0));
        goals.push(Goal::new(
            format!("of {SHARED} sockets shared 3:1, one member has 75 %, within 5 %"),
            vec![self.share.median],
            |share| (share - 75.0).abs() <= 75.0 * 0.05,
        ));
        goals.push(Goal::new(
            "a group costs at most 15 ns more for each socket than one uplink",
            vec![self.cost.more_ns.median],
            |ns| ns <= 15.0,
        ));
        goals
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, black_hole, carrier, crowd, share, cost, cgroups, records, many } = self;
        writeln!(
            formatter,
            "A member of a group fails {runs} times: until a client that connects every 10 ms has a connection by the other \
             member, and until a connection that was there before has ended (milliseconds):\n"
        )?;
        let header = ["failure", "connected: median", "p99", "ended: median", "p99"];
        let mut table = crate::report::table(header, 1);
        let mut row = |what: String, switch: &Switch| {
            let Switch { connected_ms, ended_ms } = switch;
            let numbers = [connected_ms.median, connected_ms.p99, ended_ms.median, ended_ms.p99];
            table.add_row([what].into_iter().chain(numbers.map(|ms| format!("{ms:.0}"))));
        };
        for (switch, interval) in black_hole.iter().zip(INTERVALS_MS) {
            row(format!("black hole behind a live carrier, probes every {interval} ms"), switch);
        }
        row("loss of the carrier".to_owned(), carrier);
        row(format!("loss of the carrier, {cgroups} cgroups on the group"), many);
        writeln!(formatter, "{table}\n")?;

        let Crowd { clients, per_second, late, connected_ms } = crowd;
        let mut table = crate::report::table(["", "measured"], 1);
        let mut row = |what: String, measured: String| {
            table.add_row([what, measured]);
        };
        row(
            format!("{clients} clients that connect every 10 ms if they can: sockets per second"),
            format!("{per_second:.0}"),
        );
        row(
            "they lose the carrier: until one has a connection by the other member".to_owned(),
            format!("{connected_ms:.0} ms"),
        );
        row("sockets made on the old member after that".to_owned(), late.to_string());
        row(
            format!("share of a member with 3:1 of {SHARED} sockets: median; least and most"),
            format!("{:.1} %; {:.1} to {:.1} %", share.median, share.min, share.max),
        );
        row(
            "a run of the program for a new socket: one uplink; a group".to_owned(),
            format!("{:.1} ns; {:.1} ns", cost.one_ns, cost.group_ns),
        );
        row("the difference in each round, median".to_owned(), format!("{:.1} ns", cost.more_ns.median));
        row(
            "time of a UDP socket under a group, to one under one uplink".to_owned(),
            format!("{:.3}", cost.ratio.median),
        );
        row(format!("records that decide for {cgroups} cgroups on one group"), records.to_string());
        writeln!(formatter, "{table}")
    }
}
