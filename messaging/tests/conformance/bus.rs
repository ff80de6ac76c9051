use std::time::Duration;

use bytes::Bytes;
use messaging::RequestError;

use crate::check;

/// Longer than any answer takes, shorter than a test may.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages that a subscriber may lag behind.
const QUEUE: u64 = 4096;

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn subscribers_receive_what_is_published_on_their_subject_in_order() {
    check(|pair| {
        Box::pin(async {
            let mut subscriptions = [
                pair.a.bus.subscribe("news"),
                pair.a.bus.subscribe("news"),
                pair.b.bus.subscribe("news"),
            ];
            pair.settled().await;
            pair.a.bus.publish("other", Bytes::from_static(b"not this"));
            for number in 0..100_u32 {
                pair.a.bus.publish("news", number.to_be_bytes().to_vec().into());
            }
            for subscription in &mut subscriptions {
                for number in 0..100_u32 {
                    let message = subscription.next().await.unwrap();
                    assert_eq!(message, number.to_be_bytes().as_slice());
                }
            }
        })
    });
}

#[test]
fn a_subscription_comes_before_what_its_maker_publishes_later() {
    check(|pair| {
        Box::pin(async {
            let mut own = pair.a.bus.subscribe("echo");
            pair.a.bus.publish("echo", Bytes::from_static(b"hello"));
            assert_eq!(own.next().await.unwrap(), "hello");
        })
    });
}

#[test]
fn a_slow_subscriber_loses_messages_and_they_are_counted() {
    check(|pair| {
        Box::pin(async {
            let mut slow = pair.b.bus.subscribe("flood");
            pair.settled().await;
            for batch in 0..6 {
                for number in 0..1000_u32 {
                    let number = batch * 1000 + number;
                    pair.a.bus.publish("flood", number.to_be_bytes().to_vec().into());
                }
                // The sender's own bounds are not meant here.
                pair.settled().await;
            }
            while pair.b.bus.dropped() < 6000 - QUEUE {
                tokio::task::yield_now().await;
            }
            for number in 0..QUEUE as u32 {
                assert_eq!(slow.next().await.unwrap(), number.to_be_bytes().as_slice());
            }
            pair.a.bus.publish("flood", Bytes::from_static(b"later"));
            assert_eq!(slow.next().await.unwrap(), "later", "it goes on");
            assert_eq!(pair.b.bus.dropped(), 6000 - QUEUE);
        })
    });
}

#[test]
fn requests_are_answered_or_fail_in_time() {
    check(|pair| {
        Box::pin(async {
            let ask = |timeout| pair.a.bus.request("route.r.1", Bytes::from_static(b"?"), timeout);
            assert_eq!(ask(ANSWER_TIMEOUT).await, Err(RequestError::NoResponder), "nobody");

            let mut requests = pair.b.bus.respond("route.r.1");
            pair.settled().await;
            let answer = async {
                let request = requests.next().await.unwrap();
                assert_eq!(request.payload, "?");
                request.reply(Bytes::from_static(b"!"));
            };
            let (reply, ()) = tokio::join!(ask(ANSWER_TIMEOUT), answer);
            assert_eq!(reply.unwrap(), "!");

            assert_eq!(ask(SHORT).await, Err(RequestError::TimedOut), "not answered");
            drop(requests.next().await.unwrap());
            let refuse = async { drop(requests.next().await.unwrap()) };
            let (reply, ()) = tokio::join!(ask(ANSWER_TIMEOUT), refuse);
            assert_eq!(reply, Err(RequestError::NoResponder), "dropped without an answer");

            drop(requests);
            while ask(ANSWER_TIMEOUT).await != Err(RequestError::NoResponder) {}
        })
    });
}

#[test]
fn a_responder_takes_the_place_of_the_one_before() {
    check(|pair| {
        Box::pin(async {
            let mut before = pair.b.bus.respond("route.r.1");
            let mut now = pair.b.bus.respond("route.r.1");
            pair.settled().await;
            let asked = pair.a.bus.request("route.r.1", Bytes::new(), ANSWER_TIMEOUT);
            let answer = async { now.next().await.unwrap().reply(Bytes::from_static(b"now")) };
            assert_eq!(tokio::join!(asked, answer).0.unwrap(), "now");
            assert!(before.next().await.is_none(), "the one before has ended");
        })
    });
}

#[test]
fn many_requests_are_under_way_at_once() {
    check(|pair| {
        Box::pin(async {
            let mut requests = pair.b.bus.respond("echo");
            pair.settled().await;
            let answer = async {
                for _ in 0..500 {
                    let request = requests.next().await.unwrap();
                    let payload = request.payload.clone();
                    request.reply(payload);
                }
            };
            let ask = async {
                let asks = (0..500_u32).map(|number| {
                    let payload: Bytes = number.to_be_bytes().to_vec().into();
                    pair.a.bus.request("echo", payload, ANSWER_TIMEOUT)
                });
                futures::future::join_all(asks).await
            };
            let (replies, ()) = tokio::join!(ask, answer);
            for (number, reply) in (0..500_u32).zip(replies) {
                assert_eq!(reply.unwrap(), number.to_be_bytes().as_slice());
            }
        })
    });
}
