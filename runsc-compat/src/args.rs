//! The command line's grammar.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::go_style;

#[derive(Debug, Parser)]
#[command(
    name = "casemate",
    about = "Runs containers in a sandbox with a kernel of its own",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_override_self = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

fn bandwidth(text: &str) -> Result<u64, String> {
    runtime::parse_bandwidth(text)
        .ok_or_else(|| "this is no number of bits in a second, such as 10M".to_owned())
}

#[derive(Debug, Args)]
pub struct Global {
    /// Log what is done
    #[arg(long)]
    pub debug: bool,
    /// Log every system call of the container
    #[arg(long)]
    pub strace: bool,
    /// Log the moments of the start, in milliseconds since the command began
    #[arg(long)]
    pub timing: bool,
    /// Interrupt waits of system calls that no signal interrupts, by this seed: for tests
    #[arg(long, value_name = "SEED", hide = true, default_value_t = 0)]
    pub inject_interrupts: u64,
    /// Append log lines to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where what is written on the container's root is kept: "memory" or a directory, then ",size=N" for a limit
    #[arg(long, value_name = "memory|DIR[,size=N]", default_value = "memory")]
    pub filestore: String,
    /// "text" or "json"
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
    /// Directory of the containers' state
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Take control group paths of the form slice:prefix:name, and have systemd make the scopes; directories where none answers
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted for crun's callers
    #[arg(long, value_name = "MANAGER", hide = true)]
    pub cgroup_manager: Option<String>,
    /// Accepted for runc's callers
    #[arg(long, value_name = "true|false|auto", hide = true)]
    pub rootless: Option<String>,
    /// What becomes of writes to the root: "keep" them in the bundle's root filesystem, or "discard" them at the end.
    /// Without this, containers that are created keep them, and those that are run in the foreground do not
    #[arg(long, value_name = "keep|discard", value_parser = ["keep", "discard"])]
    pub writes: Option<String>,
    /// Whether system calls in the text of programs are changed so that they need no trap
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"], default_value = "on")]
    pub patch: String,
    /// Has calls of changed text take a trap now and then, as this seed decides; for tests
    #[arg(long, value_name = "SEED", hide = true, default_value_t = 0)]
    pub patch_slow: u64,
    /// Whether calls of changed text may be answered without the Sentry; for tests
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"], hide = true, default_value = "on")]
    pub resident: String,
    /// Bits in a second that each link may bring to the container, such as 10M; annotations can only lower it
    #[arg(long, value_name = "BITS", value_parser = bandwidth)]
    pub ingress_bandwidth: Option<u64>,
    /// The same for what it sends
    #[arg(long, value_name = "BITS", value_parser = bandwidth)]
    pub egress_bandwidth: Option<u64>,
    /// Who makes the sockets of a container with a network namespace of its own: the "sandbox", whose network takes the
    /// interfaces there over, or the "host"'s kernel, in that namespace
    #[arg(long, value_name = "sandbox|host", value_parser = ["sandbox", "host"])]
    pub network: Option<String>,
    /// What containers may reach whose sockets are the host's: a policy, as of `do --net-policy`, without domains
    #[arg(long, value_name = "FILE")]
    pub host_net_policy: Option<PathBuf>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub version: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container whose program does not run yet
    Create(Create),
    /// Run the program of a created container
    Start { id: String },
    /// Create and start the container of a bundle
    Run(Run),
    /// Run a host command on a throw-away copy of the host's files
    Do(Do),
    /// Execute a process in a container
    Exec(Box<Exec>),
    /// Write a new config.json
    Spec(Spec),
    /// Show the state of a container
    State { id: String },
    /// List containers
    List(List),
    /// List the processes of a container
    Ps(Ps),
    /// Show statistics and events of a container
    Events(Events),
    /// Send a signal to a container's init process
    Kill(Kill),
    /// Stop all processes of a container where they stand
    Pause { id: String },
    /// Let a paused container go on
    Resume { id: String },
    /// Change the limits of a container
    Update(Box<Update>),
    /// Remove a stopped container
    Delete(Delete),
    /// Show what the runtime supports
    Features,
    /// Make casemate a runtime of a container engine
    Install(Install),
    /// Take back what `install` has done
    Uninstall(Install),
    /// Say what a bundle asks for beyond a plain sandbox
    Lint {
        #[arg(value_name = "BUNDLE")]
        bundle: PathBuf,
    },
    /// Say what works on this host, and what to do where something does not
    Doctor,
    /// Show what a running container is at: tasks with their system calls, files, memory
    Debug(Debug),
    /// Not supported yet
    Checkpoint(Images),
    /// Not supported yet
    Restore(Images),
}

impl Command {
    /// Descriptors that the caller passes on.
    pub fn preserve_fds(&self) -> u32 {
        match self {
            Self::Create(create) => create.making.preserve_fds,
            Self::Run(run) => run.making.preserve_fds,
            Self::Exec(exec) => exec.preserve_fds,
            _ => 0,
        }
    }

    /// What stands before an error, as runc puts it.
    pub fn failure_prefix(&self) -> &'static str {
        match self {
            Self::Create(_) => "casemate create failed: ",
            Self::Run(_) => "casemate run failed: ",
            Self::Exec(_) => "exec failed: ",
            _ => "",
        }
    }
}

/// What `create` and `run` have in common.
#[derive(Debug, Args)]
pub struct Making {
    /// The bundle's directory
    #[arg(long, short = 'b', value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Send the container's terminal to whoever listens on this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Send a descriptor of the container's init to whoever listens on this socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Write the number of the container's init to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Pass on so many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted for runc's callers: the sandbox's root never depends on the host's
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted for runc's callers: the sandbox has no keyring of the host
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    pub making: Making,
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub making: Making,
    /// Return when the container runs
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Keep the container's state after it has ended
    #[arg(long)]
    pub keep: bool,
    /// Accepted for runc's callers: no process of the container is a child of the host's
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Send the process' terminal to whoever listens on this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Send a descriptor of what stands for the process to whoever listens on this socket
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set an environment variable
    #[arg(long, short = 'e', value_name = "NAME=VALUE", allow_hyphen_values = true)]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(long, short = 't')]
    pub tty: bool,
    /// UID[:GID]
    #[arg(long, short = 'u', value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional groups
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Read the process from this file
    #[arg(long, short = 'p', value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return when the process runs
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Write the process' number to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for runc's callers
    #[arg(long, hide = true, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Accepted for runc's callers
    #[arg(long, hide = true, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Bar the process from new privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(long, short = 'c', value_name = "CAP")]
    pub cap: Vec<String>,
    /// Pass on so many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted for runc's callers: a sandbox has one control group
    #[arg(long, hide = true, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// Execute in a paused container; the process runs when that is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// "table" or "json"
    #[arg(long, short = 'f', value_name = "FORMAT", default_value = "table")]
    pub format: String,
    pub id: String,
    /// Accepted for runc's callers
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub options: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Time between statistics, such as 5s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "5s", allow_hyphen_values = true)]
    pub interval: String,
    /// Show statistics once
    #[arg(long)]
    pub stats: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Update {
    /// Read the limits from this file, or from standard input for "-"; other flags are not looked at then
    #[arg(long, short = 'r', value_name = "FILE", allow_hyphen_values = true)]
    pub resources: Option<PathBuf>,
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    #[arg(long)]
    pub cpu_period: Option<u64>,
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    #[arg(long)]
    pub cpu_share: Option<u64>,
    #[arg(long, hide = true)]
    pub cpu_rt_period: Option<u64>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    #[arg(long)]
    pub cpu_idle: Option<i64>,
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    #[arg(long, hide = true)]
    pub kernel_memory: Option<String>,
    #[arg(long, hide = true)]
    pub kernel_memory_tcp: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    #[arg(long, hide = true)]
    pub l3_cache_schema: Option<String>,
    #[arg(long, hide = true)]
    pub mem_bw_schema: Option<String>,
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Install {
    /// Docker's daemon.json
    #[arg(long)]
    pub docker: bool,
    /// containerd's config.toml
    #[arg(long)]
    pub containerd: bool,
    /// A file of podman's containers.conf.d
    #[arg(long)]
    pub podman: bool,
    /// The engine's configuration file, if it is not the usual one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The name by which the engine knows the runtime
    #[arg(long, value_name = "NAME", default_value = "casemate")]
    pub name: String,
    /// The program, if it is not this one
    #[arg(long, value_name = "PROGRAM")]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Debug {
    /// Show open files, too
    #[arg(long)]
    pub files: bool,
    /// Write every system call to this file from now on, or none any more
    #[arg(long, value_name = "FILE|off")]
    pub trace: Option<String>,
    pub id: String,
}

/// Flags of commands that cannot do anything yet are not looked at.
#[derive(Debug, Args)]
pub struct Images {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Do {
    /// Let it reach the network, by way of the host's
    #[arg(long)]
    pub net: bool,
    /// Its network: "none" but a loopback, "nat" (as --net), or "host": the host's own, with its loopback and its ports
    #[arg(long, value_name = "none|nat|host", value_parser = ["none", "nat", "host"])]
    pub network: Option<String>,
    /// What it may reach of the network; implies --net, where --network does not say otherwise
    #[arg(long, value_name = "FILE")]
    pub net_policy: Option<PathBuf>,
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
        code: u8,
    },
}

/// Parses; help and version are printed at once.
pub fn parse(args: Vec<OsString>) -> Parsed {
    let args = go_style::normalise(args);
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
                message: sentence(&error, &args, &program),
                // urfave/cli's, which runc's callers know.
                code: if error.kind() == ErrorKind::InvalidSubcommand { 3 } else { 1 },
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
            "--log" | "--log-format" | "--root" | "--rootless" | "--cgroup-manager" | "--filestore"
            | "--writes" | "--network" | "--host-net-policy" => {
                args.next();
            }
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
fn sentence(error: &clap::Error, args: &[OsString], program: &Path) -> String {
    let program = program.file_name().unwrap_or(program.as_os_str()).display();
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
            format!("{program}: \"do\" requires a minimum of 1 argument(s)")
        }
        ErrorKind::MissingRequiredArgument if ["kill", "exec", "ps"].contains(&command.as_str()) => {
            format!("{program}: \"{command}\" requires a minimum of 1 argument(s)")
        }
        ErrorKind::MissingRequiredArgument => {
            format!("{program}: \"{command}\" requires exactly 1 argument(s)")
        }
        ErrorKind::UnknownArgument if !value(ContextKind::InvalidArg).starts_with('-') => {
            let how_many = match command.as_str() {
                "kill" => "a maximum of 2",
                "list" | "features" | "spec" | "doctor" => "exactly 0",
                _ => "exactly 1",
            };
            format!("{program}: \"{command}\" requires {how_many} argument(s)")
        }
        ErrorKind::ValueValidation => {
            let (flag, given) = (value(ContextKind::InvalidArg), value(ContextKind::InvalidValue));
            let flag = flag.trim_start_matches('-').split(' ').next().unwrap_or_default();
            let unsigned = ["cpu-period", "cpu-share", "cpu-burst", "cpu-rt-period"].contains(&flag);
            if unsigned || ["cpu-quota", "cpu-rt-runtime"].contains(&flag) {
                // runc takes these as text and reads them itself.
                let call = if unsigned { "ParseUint" } else { "ParseInt" };
                format!("invalid value for {flag}: strconv.{call}: parsing {given:?}: invalid syntax")
            } else {
                format!("invalid value {given:?} for flag -{flag}: parse error")
            }
        }
        ErrorKind::InvalidValue => {
            let (flag, given) = (value(ContextKind::InvalidArg), value(ContextKind::InvalidValue));
            let flag = flag.trim_start_matches('-').split(' ').next().unwrap_or_default();
            let valid = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(all)) => all.join(" or "),
                _ => String::new(),
            };
            format!("invalid value {given:?} for flag -{flag}: must be {valid}")
        }
        ErrorKind::UnknownArgument => {
            let flag = value(ContextKind::InvalidArg);
            format!("flag provided but not defined: -{}", flag.trim_start_matches('-'))
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
        assert_eq!(wrong("casemate run"), "casemate: \"run\" requires exactly 1 argument(s)");
        assert_eq!(wrong("casemate delete a b"), "casemate: \"delete\" requires exactly 1 argument(s)");
        assert_eq!(wrong("casemate kill"), "casemate: \"kill\" requires a minimum of 1 argument(s)");
        assert_eq!(wrong("casemate list --bogus"), "flag provided but not defined: -bogus");
        assert_eq!(wrong("casemate bogus"), "No help topic for 'bogus'");
        assert_eq!(
            wrong("casemate --network bridge run x"),
            "invalid value \"bridge\" for flag -network: must be sandbox or host"
        );
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
            let Command::Do(Do { command, .. }) = arguments.command else { panic!() };
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
