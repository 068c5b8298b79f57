//! What the tests share: a bundle to run, the runtime under test, what a test needs and what it leaves.
//!
//! The tests are black box: they know the command line, the bundle and what the kernel shows, and nothing of the
//! library. `RUNTIME=crun` or `RUNTIME=/path/to/runc` runs the same tests against another runtime.

pub(crate) mod bundle;
pub(crate) mod console;
pub(crate) mod leaks;
#[macro_use]
pub(crate) mod needs;
pub(crate) mod runtime;

pub(crate) use bundle::{Bundle, mounts, namespace, process_args, sh};
pub(crate) use runtime::{Outcome, Running, Verb, runtime};

use std::time::{Duration, Instant};

/// Return from the test when the runtime under test is `$kind`, which does otherwise for the reason given.
///
/// For behaviour of the specification or of a newer runc that the named runtime does not have; say so in a `COMPAT:`
/// note beside it.
macro_rules! differs {
    ($kind:literal, $reason:expr) => {{
        fn here() {}
        if $crate::support::runtime().is($kind) {
            $crate::support::needs::differs(std::any::type_name_of_val(&here), $kind, $reason);
            return;
        }
    }};
}

/// Ask `question` until it answers true, for at most five seconds (fifty on an emulated machine); the last answer.
pub(crate) fn eventually(mut question: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience(Duration::from_secs(5));
    loop {
        if question() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `time`, made longer where `PELAGOS_PATIENCE` (a factor) says that the machine is slow.
pub(crate) fn patience(time: Duration) -> Duration {
    let factor = std::env::var("PELAGOS_PATIENCE")
        .ok()
        .and_then(|f| f.parse().ok())
        .unwrap_or(1);
    time * factor
}
