//! Measures the cost of reading a flag: from a `Flags`, from the provider's memory with each kind of context, and through
//! OpenFeature's client. For comparison, the same client is measured with a provider that only returns the same details.
//!
//! Some benchmarks read one context repeatedly (`flags_cached`, `flags_context`, `flags_prepared`, `resolve_bool_cached`, and
//! OpenFeature's client). Others read the contexts of a few users in turn (`.._in_turns`), or build one of them for each read
//! (`.._built`). The thread remembers the flag sets of all these contexts. The flag sets of many users (`.._many`) are found in
//! the cache. All threads share the contexts that are not built for each read.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]

mod cases;

use std::{hint::black_box, thread, time::Instant};

use cases::{Measure, measure_all};
use criterion::{Criterion, criterion_group, criterion_main};

struct Bench<'a>(&'a mut Criterion);

impl Measure for Bench<'_> {
    fn on_one_thread<T>(&mut self, name: &str, read: impl Fn(usize) -> T) {
        let mut number = 0_usize;
        self.0.bench_function(name, |bencher| {
            bencher.iter(|| {
                number = number.wrapping_add(1);
                read(number)
            });
        });
    }

    fn on_two_threads<T>(&mut self, name: &str, read: impl Fn(usize) -> T + Sync) {
        let run = |iterations| {
            for number in 0..iterations {
                black_box(read(number));
            }
        };
        self.0.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let iterations = usize::try_from(iterations).expect("an address has 64 bits");
                let began = Instant::now();
                thread::scope(|scope| {
                    scope.spawn(|| run(iterations));
                    scope.spawn(|| run(iterations));
                });
                began.elapsed()
            });
        });
    }
}

fn read_path(criterion: &mut Criterion) {
    measure_all(&mut Bench(criterion));
}

criterion_group!(benches, read_path);
criterion_main!(benches);
