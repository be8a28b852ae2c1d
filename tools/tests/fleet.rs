//! Runs small fleets of processes with Redis, and checks what they read and how many requests they send.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a test fails by panicking, and shows what was measured")]

use std::process::Command;

/// Runs `fleet`. It fails if an instance reads a value of another user, or an old value as fresh, or if a change costs too many
/// requests.
fn run(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_fleet")).args(arguments).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "fleet {arguments:?}\n{out}\n{errors}");
    println!("fleet {arguments:?}\n{out}");
}

#[test]
fn a_change_costs_a_fleet_as_many_requests_as_one_instance() {
    // 8 changes include a heartbeat, a restart and a new API key. There are few users, because a debug build is slower.
    run(&["--users", "200", "--changes", "8"]);
    run(&["--users", "200", "--changes", "2", "--delay", "1000"]);
}

#[test]
fn no_instance_reads_old_values_as_fresh_during_faults() {
    for fault in ["flush", "kill", "slow", "member", "cut"] {
        run(&["--users", "100", "--changes", "1", "--fault", fault]);
    }
    run(&["--users", "100", "--changes", "2", "--polling"]);
}
