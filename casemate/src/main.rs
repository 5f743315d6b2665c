//! The `casemate` binary: one program that holds every process of a sandbox.
//!
//! The command line lives in `runsc-compat`. The sandbox process and the gofer are this binary again, executed by
//! descriptor under a name of their own; they expect descriptors that only the command lays out, so that starting them
//! by hand does nothing but fail. Under the name of a containerd shim it is that shim.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A development build unwinds, as tests need it: no thread of ours goes on without the one that panicked.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
    let args: Vec<OsString> = env::args_os().collect();
    let is = |at: usize, name: &str| args.get(at).is_some_and(|arg| arg == name);
    if is(0, "casemate-sentry") {
        return sentry_boot::main();
    }
    if is(0, runtime::detached::MONITOR_NAME) {
        return runtime::detached::monitor_main();
    }
    if is(0, runtime::detached::PROXY_NAME) {
        return runtime::detached::proxy_main();
    }
    if is(0, net_broker::NAME) {
        return net_broker::main();
    }
    if is(0, net_broker::sockets::NAME) {
        return net_broker::sockets::main();
    }
    if is(0, "casemate-gofer") && is(1, gofer::launch::SUBCOMMAND) {
        return gofer::main();
    }
    if args.first().is_some_and(shim::is_its_name) {
        return shim::main(args);
    }
    runsc_compat::main(args)
}
