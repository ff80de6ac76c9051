//! A look around, with a driver that answers and with one that does not.

use std::time::{Duration, Instant};

use topology::{Driver, Look, Monitor, NoGpu};

use crate::fake::Fake;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(200);

fn with_host_id(name: &str) -> Fake {
    Fake::new(name).file("proc/sys/kernel/random/boot_id", "boot\n")
}

#[test]
fn a_driver_that_answers_is_watched() {
    let host = with_host_id("look").driver_that_wedges();
    let look = Look::around(&host.source(), HOUR, HOUR).unwrap();
    assert_eq!((look.topology.gpus.len(), look.topology.notes.len()), (2, 0));
    assert_eq!(look.monitor.as_ref().unwrap().latest().len(), 2);
    drop(look);
    host.wait_until("closed");
}

#[test]
fn without_a_driver_there_is_none_to_wait_for() {
    let look = Look::around(&with_host_id("look-none").source(), HOUR, HOUR).unwrap();
    assert!(matches!(look.monitor, Err(NoGpu::NoLibrary)));
    assert_eq!(look.topology.host.id.len(), 32);
}

#[test]
fn a_driver_that_hangs_counts_as_none_and_may_answer_later() {
    let host = with_host_id("look-wedged").driver_that_wedges();
    host.wedge();
    let began = Instant::now();
    let look = Look::around(&host.source(), HOUR, SOON).unwrap();
    assert!(began.elapsed() >= SOON);
    host.wait_until("asked");
    let Err(none @ NoGpu::Silent(_)) = &look.monitor else { panic!("it did not answer") };
    let sentence = none.to_string();
    assert!(sentence.starts_with("no GPU: the NVIDIA driver does not answer within 200ms"));
    assert_eq!(look.topology.notes, [sentence]);
    assert_eq!((look.topology.gpus.len(), look.topology.host.id.len()), (0, 32));
    drop(look);
    // What it finds when it answers is nobody's.
    host.unwedge();
    host.wait_until("closed");
}

#[test]
fn a_monitor_of_a_driver_that_hangs_can_be_read_and_dropped() {
    let host = with_host_id("monitor-wedged").driver_that_wedges();
    let driver = Driver::open(&host.source()).unwrap();
    let monitor = Monitor::start(driver, Duration::from_millis(1)).unwrap();
    host.wedge();
    host.wait_until("asked");
    assert_eq!(monitor.latest().len(), 2, "what it told before");
    drop(monitor);
    host.unwedge();
    host.wait_until("closed");
}
