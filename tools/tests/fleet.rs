//! Runs small fleets of processes with Redis, and checks what they read and what it costs.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a test fails by panicking, and shows what was measured")]

use std::process::Command;

/// Runs `fleet`, which fails if an instance has read a value of another user or an old one as fresh, or if a change cost too much.
fn run(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_fleet")).args(arguments).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "fleet {arguments:?}\n{out}\n{errors}");
    println!("fleet {arguments:?}\n{out}");
}

#[test]
fn a_change_costs_a_fleet_what_it_costs_one_instance() {
    // With a heartbeat, a restart and a new API key. In a debug build, of which the machine can do less.
    run(&["--users", "200", "--changes", "8"]);
    run(&["--users", "200", "--changes", "2", "--delay", "1000"]);
}

#[test]
fn faults_make_no_instance_read_old_values_as_fresh() {
    for fault in ["flush", "kill", "slow", "member", "cut"] {
        run(&["--users", "100", "--changes", "1", "--fault", fault]);
    }
    run(&["--users", "100", "--changes", "2", "--polling"]);
}
