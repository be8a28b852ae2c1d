//! Measures what it costs to read a flag, to compare two versions of the code: `read_path`. Takes about ten seconds.
//!
//! Prints a line for each figure: its name, and nanoseconds for each of a fixed number of iterations. The figures are
//! those of `cargo bench -p flipswitch --bench read_path`, without the statistics: `tools/compare` runs two builds of
//! this program in turns, so that whatever else the machine does meanwhile affects both.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "it prints what it measures, and fails by panicking")]

#[path = "../../../flipswitch/benches/cases/mod.rs"]
mod cases;

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use cases::{Measure, measure_all};

struct Print;

impl Measure for Print {
    fn on_one_thread<T>(&mut self, name: &str, read: impl Fn(usize) -> T) {
        let iterations = iterations(name);
        run(iterations / 10, &read);
        let began = Instant::now();
        run(iterations, &read);
        print(name, began.elapsed(), iterations);
    }

    fn on_two_threads<T>(&mut self, name: &str, read: impl Fn(usize) -> T + Sync) {
        let iterations = iterations(name);
        run(iterations / 10, &read);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| run(iterations, &read));
            scope.spawn(|| run(iterations, &read));
        });
        print(name, began.elapsed(), iterations);
    }
}

/// Returns how often a read is measured: for about 0.2 seconds.
fn iterations(name: &str) -> usize {
    match name.split_once('/') {
        Some(("flags", _)) => 20_000_000,
        Some(("provider", _)) => 500_000,
        _ => 200_000,
    }
}

fn run<T>(iterations: usize, read: impl Fn(usize) -> T) {
    for number in 0..iterations {
        black_box(read(number));
    }
}

fn print(name: &str, elapsed: Duration, iterations: usize) {
    println!("{name} {:.3}", elapsed.as_nanos() as f64 / iterations as f64);
}

fn main() {
    measure_all(&mut Print);
}
