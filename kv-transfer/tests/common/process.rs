//! This test binary once more, as another process in a role.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kv_transfer::{Capability, Lease, LeaseId};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::task::block_in_place;

/// Says to a test binary what it is.
pub const ROLE: &str = "KV_TRANSFER_TEST_ROLE";

/// A process in a role, which is killed when this is dropped.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Process {
    /// `test` is the test of this binary that the process is to run, in that role.
    pub fn start(test: &str, role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    /// What it says next, among what a test binary prints.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            let bytes = block_in_place(|| self.output.read_line(&mut line)).unwrap();
            assert!(bytes > 0, "the process ended");
            if let Some((_, said)) = line.split_once("said: ") {
                return said.trim().to_string();
            }
        }
    }

    /// What it answers.
    pub fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").unwrap();
        self.hear()
    }

    pub fn strike(&mut self, signal: Signal) {
        let process = Pid::from_child(&self.child);
        kill_process(process, signal).unwrap();
        // A thread may go on for a moment after the signal was sent.
        if signal == Signal::KILL {
            self.child.wait().unwrap();
        } else if signal == Signal::STOP {
            waitpid(Some(process), WaitOptions::UNTRACED).unwrap();
        }
    }
}

/// What its parent hears.
pub fn say(what: impl std::fmt::Display) {
    println!("\nsaid: {what}");
    std::io::stdout().flush().unwrap();
}

/// Where the blocks are and what allows to read them, in one line.
pub fn written(address: &str, lease: Lease) -> String {
    format!("{address} {} {}", lease.id.0, u128::from_be_bytes(lease.capability.to_bytes()))
}

/// What `written` wrote.
pub fn read_back(line: &str) -> (String, Lease) {
    let parts: Vec<&str> = line.split(' ').collect();
    let capability = parts[2].parse::<u128>().unwrap().to_be_bytes();
    let capability = Capability::from_bytes(&capability).unwrap();
    (parts[0].into(), Lease { id: LeaseId(parts[1].parse().unwrap()), capability })
}
