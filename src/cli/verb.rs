//! The list of verbs.

use clap::{CommandFactory, Parser, Subcommand};

use super::conclusion::Conclusion;
use super::{
    answers, bench, container, delta, doctor, explain, firmware, health, history, init, inspect, manual,
    pack, plan, prepare, remote, repair, select, serve, sign, slots, status, switch, token, verbose, verify,
};
use crate::error::Result;

const AFTER_HELP: &str = "\
An upgrade: qstage prepare x.qimg && qstage commit && reboot; when the new
slot runs well: qstage mark-good. Nothing that runs is touched before commit.
The same through a service: qstage upgrade x.qimg --commit.
'qstage help VERB' explains a verb.

Exit codes: 0 done, 1 defect, 2 usage or configuration, 3 bundle damaged,
4 bundle not trusted, 5 refused by a rule, 6 disk not as needed, 7 I/O
failed, 8 stopped by a signal, 9 a container or health check failed,
10 the network or a web server failed, 11 done, but standard output did not
take the report, 12 the service refused its caller. 'qstage explain CODE'
explains an error code.";

/// Upgrade an A/B appliance: stage signed bundles, switch in one write
///
/// qstage writes a signed .qimg bundle into the inactive slot and reads it back. Then
/// it switches slots with a single sector write, which a power cut cannot tear.
#[derive(Debug, Parser)]
#[command(name = "qstage", version, max_term_width = 80, after_help = AFTER_HELP)]
// 'help VERB' is read in parse.rs.
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// Print what is read, queried and started; -vv prints more
    #[arg(long, short, global = true, action = clap::ArgAction::Count, display_order = 900)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Pack(pack::PackArgs),
    Sign(sign::SignArgs),
    Delta(delta::DeltaArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Init(init::InitArgs),
    Plan(plan::PlanArgs),
    Prepare(prepare::PrepareArgs),
    Commit(switch::CommitArgs),
    MarkGood(switch::MarkGoodArgs),
    RollBack(switch::RollBackArgs),
    Cancel(switch::CancelArgs),
    Repair(repair::RepairArgs),
    Status(status::StatusArgs),
    Slots(slots::SlotsArgs),
    History(history::HistoryArgs),
    Select(select::SelectArgs),
    Firmware(firmware::FirmwareArgs),
    Bench(bench::BenchArgs),
    Container(container::ContainerArgs),
    Health(health::HealthArgs),
    Serve(serve::ServeArgs),
    Token(token::TokenArgs),
    Upgrade(remote::UpgradeArgs),
    Watch(remote::WatchArgs),
    Cluster(remote::ClusterArgs),
    Doctor(doctor::DoctorArgs),
    Explain(explain::ExplainArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    #[command(hide = true)]
    Answers(answers::AnswersArgs),
}

impl Cli {
    /// Runs the verb of the command line and prints its result, but not its error.
    ///
    /// # Errors
    /// The one that ended the verb; its class is the exit code.
    pub fn run(&self) -> Result<Conclusion> {
        // The log of a service has its own format.
        if self.verbose > 0 && !matches!(self.verb, Verb::Serve(_)) {
            verbose::show(self.verbose);
        }
        let result = match &self.verb {
            Verb::Pack(args) => args.run(),
            Verb::Sign(args) => args.run(),
            Verb::Delta(args) => args.run(),
            Verb::Inspect(args) => args.run(),
            Verb::Verify(args) => args.run(),
            Verb::Init(args) => args.run(),
            Verb::Plan(args) => return args.run(),
            Verb::Prepare(args) => args.run(),
            Verb::Commit(args) => args.run(),
            Verb::MarkGood(args) => args.run(),
            Verb::RollBack(args) => args.run(),
            Verb::Cancel(args) => args.run(),
            Verb::Repair(args) => args.run(),
            Verb::Status(args) => args.run(),
            Verb::Slots(args) => args.run(),
            Verb::History(args) => args.run(),
            Verb::Select(args) => args.run(),
            Verb::Firmware(args) => args.run(),
            Verb::Bench(args) => args.run(),
            Verb::Container(args) => args.run(),
            Verb::Health(args) => args.run(),
            Verb::Serve(args) => args.run(self.verbose),
            Verb::Token(args) => args.run(),
            Verb::Upgrade(args) => args.run(),
            Verb::Watch(args) => args.run(),
            Verb::Cluster(args) => args.run(),
            Verb::Doctor(args) => args.run(),
            Verb::Explain(args) => args.run(),
            Verb::Completions(args) => args.run(Self::command()),
            Verb::Man(args) => args.run(Self::command()),
            Verb::Answers(args) => args.run(),
        };
        result.map(|()| Conclusion::Done)
    }

    /// Whether an error is also printed as JSON on standard output.
    pub const fn wants_json(&self) -> bool {
        match &self.verb {
            Verb::Pack(args) => args.json,
            Verb::Sign(args) => args.json,
            Verb::Delta(args) => args.json,
            Verb::Inspect(args) => args.json,
            Verb::Verify(args) => args.json,
            Verb::Init(args) => args.json,
            Verb::Plan(args) => args.json,
            Verb::Prepare(args) => args.json,
            Verb::Commit(args) => args.json,
            Verb::MarkGood(args) => args.json,
            Verb::RollBack(args) => args.json,
            Verb::Cancel(args) => args.json,
            Verb::Repair(args) => args.json,
            Verb::Slots(args) => args.json,
            Verb::History(args) => args.json,
            Verb::Select(args) => args.json,
            Verb::Firmware(args) => args.wants_json(),
            Verb::Bench(args) => args.json,
            Verb::Container(args) => args.wants_json(),
            Verb::Health(args) => args.json,
            Verb::Token(args) => args.wants_json(),
            Verb::Upgrade(args) => args.json,
            Verb::Watch(args) => args.json,
            Verb::Cluster(args) => args.wants_json(),
            Verb::Doctor(args) => args.json,
            Verb::Explain(args) => args.json,
            // status prints its seven keys and never another object.
            Verb::Status(_) | Verb::Serve(_) | Verb::Completions(_) | Verb::Man(_) | Verb::Answers(_) => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use super::*;
    use crate::boot::BootFlag;
    use crate::units::BlockSize;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The service passes its own flags to its child processes: the words parse again, with the same meaning.
    #[test]
    fn the_words_for_another_process_say_the_same() {
        let line = [
            "qstage",
            "plan",
            "x",
            "--disk",
            "/d",
            "--boot-flag",
            "legacy",
            "--efivars",
            "/e",
            "--booted",
            "b",
            "--sector-size",
            "4096",
            "--state-dir",
            "/s",
            "--assume-unused",
            "--config",
            "/c",
            "--trust",
            "/t",
        ];
        let words = |line: &[OsString]| {
            let Verb::Plan(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("another verb") };
            [args.machine.words().unwrap(), args.trust.words().unwrap()].concat()
        };
        let line = line.map(OsString::from);
        let first = words(&line);
        assert_eq!(first.len(), line.len() - 3);
        let again = [&line[..3], &first[..]].concat();
        assert_eq!(words(&again), first);
    }

    #[test]
    fn the_command_line_overrides_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(
            &file,
            "disk = \"/dev/one\"\nboot_flag = \"legacy\"\nstate_dir = \"/one\"\nsector_size = 4096\n",
        )
        .unwrap();
        let parse = |more: &[&str]| {
            let mut line = vec!["qstage", "status", "--config", file.to_str().unwrap()];
            line.extend(more);
            let Verb::Status(args) = Cli::try_parse_from(line).unwrap().verb else { panic!("another verb") };
            args.machine.settings().unwrap()
        };
        let of_file = parse(&[]);
        assert_eq!(of_file.disk.as_deref(), Some(Path::new("/dev/one")));
        assert_eq!(of_file.boot_flag, BootFlag::Legacy);
        assert_eq!(of_file.state_dir, Path::new("/one"));
        assert_eq!(of_file.sector_size, Some(BlockSize::B4096));
        let all =
            ["--disk", "/two", "--boot-flag", "priority", "--state-dir", "/two", "--sector-size", "512"];
        let overridden = parse(&all);
        assert_eq!(overridden.disk.as_deref(), Some(Path::new("/two")));
        assert_eq!(overridden.boot_flag, BootFlag::Priority);
        assert_eq!(overridden.state_dir, Path::new("/two"));
        assert_eq!(overridden.sector_size, Some(BlockSize::B512));
    }
}
