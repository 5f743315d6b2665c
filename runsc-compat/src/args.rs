//! The command line's grammar.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "casemate",
    about = "Runs containers in a sandbox with a kernel of its own",
    disable_version_flag = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Log what is done
    #[arg(long)]
    pub debug: bool,
    /// Log every system call of the container
    #[arg(long)]
    pub strace: bool,
    /// Append log lines to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// "text" or "json"
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
    /// Directory of the containers' state
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Accepted for runc's callers; control groups are written directly
    #[arg(long, hide = true)]
    pub systemd_cgroup: bool,
    /// Accepted for runc's callers
    #[arg(long, value_name = "true|false|auto", hide = true)]
    pub rootless: Option<String>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub version: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the container of a bundle in the foreground
    Run(Run),
    /// Run a host command on a throw-away copy of the host's files
    Do(Do),
    /// Write a new config.json
    Spec(Spec),
    /// Show the state of a container
    State { id: String },
    /// List containers
    List(List),
    /// Send a signal to a container's init process
    Kill(Kill),
    /// Remove a stopped container
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Run {
    /// The bundle's directory
    #[arg(long, short = 'b', value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Write the sandbox's process number to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Keep the container's state after it has ended
    #[arg(long)]
    pub keep: bool,
    /// Accepted for runc's callers: the sandbox's root never depends on the host's
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted for runc's callers: the sandbox has no keyring of the host
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
    /// Accepted for runc's callers: no process of the container is a child of the host's
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Do {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Spec {
    /// The bundle's directory
    #[arg(long, short = 'b', value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// For a user without privileges
    #[arg(long)]
    pub rootless: bool,
}

#[derive(Debug, Args)]
pub struct List {
    /// "table" or "json"
    #[arg(long, short = 'f', value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Print IDs alone
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Accepted for runc's callers
    #[arg(long, short = 'a', hide = true)]
    pub all: bool,
    pub id: String,
    #[arg(default_value = "SIGTERM", allow_hyphen_values = true)]
    pub signal: String,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Kill the container first if it runs
    #[arg(long, short = 'f')]
    pub force: bool,
    pub id: String,
}

/// What became of a command line.
pub enum Parsed {
    Run(Box<Arguments>),
    /// Help or the version was printed.
    Shown,
    Wrong {
        log: Option<PathBuf>,
        json: bool,
        message: String,
    },
}

/// Parses; help and version are printed at once.
pub fn parse(args: Vec<OsString>) -> Parsed {
    let program = args.first().map(PathBuf::from).unwrap_or_default();
    if shows_version(&args) {
        crate::output::print(&version(&program));
        return Parsed::Shown;
    }
    let parsed = Arguments::command()
        .try_get_matches_from(&args)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    match parsed {
        Ok(arguments) => Parsed::Run(Box::new(arguments)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                crate::output::print(&error.render().to_string());
                Parsed::Shown
            }
            _ => Parsed::Wrong {
                log: value_of(&args, "--log").map(PathBuf::from),
                json: value_of(&args, "--log-format").is_some_and(|format| format == "json"),
                message: sentence(&error, &args),
            },
        },
    }
}

/// Whether `--version` or `-v` is among the global flags: it needs no command.
fn shows_version(args: &[OsString]) -> bool {
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_string_lossy().as_ref() {
            "--version" | "-v" | "-version" => return true,
            "--log" | "--log-format" | "--root" | "--rootless" => drop(args.next()),
            flag if flag.starts_with('-') => {}
            _ => return false,
        }
    }
    false
}

/// As runc prints it; a caller that knows runc alone starts us by that name and reads that name.
fn version(program: &Path) -> String {
    let called_runc = program.file_name().is_some_and(|name| name == "runc");
    let name = if called_runc { "runc" } else { "casemate" };
    format!("{name} version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), crate::output::SPEC_VERSION)
}

/// The value of a global flag in a command line that did not parse.
fn value_of(args: &[OsString], flag: &str) -> Option<OsString> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == flag {
            return args.next().cloned();
        }
        if let Some(value) = arg.to_str().and_then(|arg| arg.strip_prefix(flag)?.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

/// One line that says what is wrong.
fn sentence(error: &clap::Error, args: &[OsString]) -> String {
    let command = args.iter().skip(1).find(|arg| {
        Arguments::command().get_subcommands().any(|command| Some(command.get_name()) == arg.to_str())
    });
    let command = command.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let value = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(list)) => list.join(" "),
        _ => String::new(),
    };
    match error.kind() {
        ErrorKind::MissingRequiredArgument if command == "do" => {
            "\"do\" requires a minimum of 1 argument(s)".to_owned()
        }
        ErrorKind::MissingRequiredArgument if command == "kill" => {
            "\"kill\" requires a minimum of 1 argument(s)".to_owned()
        }
        ErrorKind::MissingRequiredArgument => format!("\"{command}\" requires exactly 1 argument(s)"),
        ErrorKind::UnknownArgument if !value(ContextKind::InvalidArg).starts_with('-') => {
            format!("\"{command}\" requires exactly 1 argument(s)")
        }
        ErrorKind::UnknownArgument => {
            format!("flag provided but not defined: {}", value(ContextKind::InvalidArg))
        }
        ErrorKind::InvalidSubcommand => {
            format!("No help topic for '{}'", value(ContextKind::InvalidSubcommand))
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(line: &str) -> String {
        match parse(line.split(' ').map(OsString::from).collect()) {
            Parsed::Wrong { message, .. } => message,
            _ => panic!("{line} was accepted"),
        }
    }

    #[test]
    fn errors_are_runc_s() {
        assert_eq!(wrong("casemate run"), "\"run\" requires exactly 1 argument(s)");
        assert_eq!(wrong("casemate delete a b"), "\"delete\" requires exactly 1 argument(s)");
        assert_eq!(wrong("casemate kill"), "\"kill\" requires a minimum of 1 argument(s)");
        assert_eq!(wrong("casemate list --bogus"), "flag provided but not defined: --bogus");
        assert_eq!(wrong("casemate bogus"), "No help topic for 'bogus'");
    }

    #[test]
    fn the_version_is_shown_behind_other_flags_but_not_behind_a_command() {
        let shows = |line: &str| shows_version(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(shows("casemate --root /r --debug --version"));
        assert!(shows("runc -v"));
        assert!(!shows("casemate do ls --version"));
        assert!(!shows("casemate --root --version list"));
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        for line in ["casemate do -- ls -l --color", "casemate do ls -l --color"] {
            let Parsed::Run(arguments) = parse(line.split(' ').map(OsString::from).collect()) else {
                panic!("{line} was refused");
            };
            let Command::Do(Do { command }) = arguments.command else { panic!() };
            assert_eq!(command, ["ls", "-l", "--color"]);
        }
    }

    #[test]
    fn the_log_of_a_wrong_line_is_found() {
        let line = "runc --root /r --log /l --log-format json create --nope x";
        match parse(line.split(' ').map(OsString::from).collect()) {
            Parsed::Wrong { log, json, .. } => {
                assert_eq!(log, Some("/l".into()));
                assert!(json);
            }
            _ => panic!("accepted"),
        }
    }
}
