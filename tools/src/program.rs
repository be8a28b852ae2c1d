//! Starts programs and measures them.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
};

/// A process. Dropping it kills the process.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts a program. Returns it with the first line that it prints.
    ///
    /// # Errors
    ///
    /// Returns an error if the program cannot be started, or if it prints nothing.
    pub fn start(command: &mut Command) -> io::Result<(Self, String)> {
        let mut program = Self(command.stdout(Stdio::piped()).spawn()?);
        let output = program.0.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
        let mut line = String::new();
        if BufReader::new(output).read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("{} printed nothing", command.get_program().display())));
        }
        Ok((program, line.trim().to_owned()))
    }

    /// Returns the CPU time of all threads of the process so far, in seconds. Linux only.
    ///
    /// # Errors
    ///
    /// Returns an error if `/proc` cannot be read.
    pub fn time_on_core(&self) -> io::Result<f64> {
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let scheduled = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += scheduled.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default();
        }
        Ok(nanoseconds / 1e9)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
