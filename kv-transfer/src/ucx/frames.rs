//! What a worker and its agent say to each other over a socket of their own. Pure: bytes in, values
//! out. Both are this program, so a frame that cannot be understood ends the agent.
//!
//! A frame is the length of what follows (4 bytes, little-endian like all numbers), a kind, and its
//! fields in order; bytes of unknown length come last.

use bytes::{Buf, BufMut};

use crate::tcp::wire::RUNS_MAX;

/// Bytes of how a pool is reached: UCX's address of its process, with one entry per network device,
/// and a key to its memory.
pub const KEYS_BYTES_MAX: usize = crate::tcp::wire::LENT_BYTES_MAX;

/// Bytes of a sentence.
const REASON_BYTES_MAX: usize = 1024;

/// Bytes of one copy.
const COPY_BYTES: usize = 3 * 8;

/// Bytes of the largest frame, its length not counted.
pub const FRAME_BYTES_MAX: usize = 1 + 8 + 4 + 4 + RUNS_MAX * COPY_BYTES + KEYS_BYTES_MAX;

/// Bytes of the name of a GPU's memory.
const HANDLE_BYTES: usize = 64;

/// Bytes of the longest first frame.
pub const POOL_FRAME_BYTES_MAX: usize = LENGTH_BYTES + 1 + 8 + 1 + 4 + HANDLE_BYTES;

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;

/// Bytes that lie together on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// From the start of the source's pool.
    pub from: u64,
    /// From the start of the reader's.
    pub to: u64,
    /// How many.
    pub bytes: u64,
}

/// Where a pool lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file, whose descriptor comes along.
    File,
    /// On a GPU, by the number that both processes know it by, which `handle` (`CUipcMemHandle`) maps.
    Gpu { ordinal: u32, handle: [u8; HANDLE_BYTES] },
}

/// What an agent is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Comes first: there is a pool of so many bytes.
    Pool { bytes: u64, place: Place },
    /// Is answered at once, as long as the agent can.
    Ping,
    /// Fetch bytes from the pool that `keys` reach, within a time.
    Get { id: u64, limit_ms: u32, copies: Vec<Copy>, keys: Vec<u8> },
}

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The pool can be reached by `keys`.
    Ready { keys: Vec<u8> },
    /// There will be no pool. `is_final`: not in another try either.
    Failed { is_final: bool, reason: String },
    /// To a ping.
    Pong,
    /// A get has ended; nothing more is written for it.
    Ended { id: u64, how: Ended },
}

/// How a get ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All bytes are there.
    Well,
    /// No bytes came for too long.
    Silent,
    /// It took too long.
    Late,
    /// UCX gave it up.
    Failed(String),
}

impl Request {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = begin();
        match self {
            Self::Pool { bytes, place } => {
                frame.put_u8(1);
                frame.put_u64_le(*bytes);
                match place {
                    Place::File => frame.put_u8(0),
                    Place::Gpu { ordinal, handle } => {
                        frame.put_u8(1);
                        frame.put_u32_le(*ordinal);
                        frame.put_slice(handle);
                    }
                }
            }
            Self::Ping => frame.put_u8(2),
            Self::Get { id, limit_ms, copies, keys } => {
                frame.put_u8(3);
                frame.put_u64_le(*id);
                frame.put_u32_le(*limit_ms);
                frame.put_u32_le(copies.len() as u32);
                for copy in copies {
                    for number in [copy.from, copy.to, copy.bytes] {
                        frame.put_u64_le(number);
                    }
                }
                frame.put_slice(keys);
            }
        }
        ended(frame)
    }

    /// Reads what follows a length.
    pub fn decode(mut rest: &[u8]) -> Option<Self> {
        let request = match rest.try_get_u8().ok()? {
            1 => Self::Pool { bytes: rest.try_get_u64_le().ok()?, place: place(&mut rest)? },
            2 => Self::Ping,
            3 => {
                let (id, limit_ms) = (rest.try_get_u64_le().ok()?, rest.try_get_u32_le().ok()?);
                let copies = copies(&mut rest)?;
                let keys = take_all(&mut rest, KEYS_BYTES_MAX)?;
                Self::Get { id, limit_ms, copies, keys }
            }
            _ => return None,
        };
        rest.is_empty().then_some(request)
    }
}

impl Reply {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = begin();
        match self {
            Self::Ready { keys } => {
                frame.put_u8(1);
                frame.put_slice(keys);
            }
            Self::Failed { is_final, reason } => {
                frame.put_slice(&[2, u8::from(*is_final)]);
                frame.put_slice(shortened(reason));
            }
            Self::Pong => frame.put_u8(3),
            Self::Ended { id, how } => {
                frame.put_u8(4);
                frame.put_u64_le(*id);
                match how {
                    Ended::Well => frame.put_u8(0),
                    Ended::Silent => frame.put_u8(1),
                    Ended::Late => frame.put_u8(2),
                    Ended::Failed(reason) => {
                        frame.put_u8(3);
                        frame.put_slice(shortened(reason));
                    }
                }
            }
        }
        ended(frame)
    }

    /// Reads what follows a length.
    pub fn decode(mut rest: &[u8]) -> Option<Self> {
        let reply = match rest.try_get_u8().ok()? {
            1 => Self::Ready { keys: take_all(&mut rest, KEYS_BYTES_MAX)? },
            2 => {
                let is_final = rest.try_get_u8().ok()? != 0;
                Self::Failed { is_final, reason: sentence(&mut rest)? }
            }
            3 => Self::Pong,
            4 => {
                let id = rest.try_get_u64_le().ok()?;
                let how = match rest.try_get_u8().ok()? {
                    0 => Ended::Well,
                    1 => Ended::Silent,
                    2 => Ended::Late,
                    3 => Ended::Failed(sentence(&mut rest)?),
                    _ => return None,
                };
                Self::Ended { id, how }
            }
            _ => return None,
        };
        rest.is_empty().then_some(reply)
    }
}

/// How many bytes follow a length, if that many may.
pub fn following(length: [u8; LENGTH_BYTES]) -> Option<usize> {
    let length = u32::from_le_bytes(length) as usize;
    (1..=FRAME_BYTES_MAX).contains(&length).then_some(length)
}

fn begin() -> Vec<u8> {
    vec![0; LENGTH_BYTES]
}

fn ended(mut frame: Vec<u8>) -> Vec<u8> {
    let length = (frame.len() - LENGTH_BYTES) as u32;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    frame
}

fn place(rest: &mut &[u8]) -> Option<Place> {
    match rest.try_get_u8().ok()? {
        0 => Some(Place::File),
        1 => {
            let ordinal = rest.try_get_u32_le().ok()?;
            let (handle, behind) = rest.split_first_chunk()?;
            *rest = behind;
            Some(Place::Gpu { ordinal, handle: *handle })
        }
        _ => None,
    }
}

fn copies(rest: &mut &[u8]) -> Option<Vec<Copy>> {
    let count = rest.try_get_u32_le().ok()? as usize;
    if count > RUNS_MAX || rest.len() < count * COPY_BYTES {
        return None;
    }
    let mut number = || rest.get_u64_le();
    Some((0..count).map(|_| Copy { from: number(), to: number(), bytes: number() }).collect())
}

fn take_all(rest: &mut &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    (rest.len() <= bytes_max).then(|| std::mem::take(rest).to_vec())
}

fn shortened(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]
}

fn sentence(rest: &mut &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(&take_all(rest, REASON_BYTES_MAX)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let copy = Copy { from: 1, to: u64::MAX, bytes: 3 };
        let most = vec![copy; RUNS_MAX];
        vec![
            Request::Pool { bytes: 1 << 40, place: Place::File },
            Request::Pool { bytes: 1 << 40, place: Place::Gpu { ordinal: 7, handle: [5; 64] } },
            Request::Ping,
            Request::Get { id: 7, limit_ms: 10_000, copies: vec![], keys: vec![] },
            Request::Get { id: 8, limit_ms: 1, copies: most, keys: vec![9; KEYS_BYTES_MAX] },
        ]
    }

    fn replies() -> Vec<Reply> {
        let ended = |how| Reply::Ended { id: 3, how };
        vec![
            Reply::Ready { keys: vec![1, 2, 3] },
            Reply::Failed { is_final: true, reason: "no".into() },
            Reply::Pong,
            ended(Ended::Well),
            ended(Ended::Silent),
            ended(Ended::Late),
            ended(Ended::Failed("reset".into())),
        ]
    }

    /// What follows the length, which says so.
    fn body(frame: &[u8]) -> &[u8] {
        let (length, body) = frame.split_first_chunk().unwrap();
        assert_eq!(following(*length), Some(body.len()));
        body
    }

    #[test]
    fn frames_come_back_as_they_were() {
        for request in requests() {
            assert_eq!(Request::decode(body(&request.encode())), Some(request));
        }
        for reply in replies() {
            assert_eq!(Reply::decode(body(&reply.encode())), Some(reply));
        }
    }

    #[test]
    fn frames_that_are_cut_off_or_too_long_are_refused() {
        let cut = Request::Get { id: 7, limit_ms: 1, copies: vec![], keys: vec![] }.encode();
        for bytes in 0..body(&cut).len() {
            assert_eq!(Request::decode(&body(&cut)[..bytes]), None);
        }
        let mut longer = body(&Reply::Pong.encode()).to_vec();
        longer.push(0);
        assert_eq!(Reply::decode(&longer), None);
        let keys = vec![0; KEYS_BYTES_MAX + 1];
        assert_eq!(Reply::decode(body(&Reply::Ready { keys }.encode())), None);
        let place = Place::Gpu { ordinal: 0, handle: [0; HANDLE_BYTES] };
        let pool = Request::Pool { bytes: 0, place }.encode();
        assert_eq!(pool.len(), POOL_FRAME_BYTES_MAX);
        assert_eq!(Request::decode(&body(&pool)[..pool.len() - LENGTH_BYTES - 1]), None);
        assert_eq!(following((FRAME_BYTES_MAX as u32 + 1).to_le_bytes()), None);
        assert_eq!(following([0; 4]), None);
    }

    #[test]
    fn reasons_are_cut_to_their_limit() {
        let reason = "no".repeat(REASON_BYTES_MAX);
        let frame = Reply::Failed { is_final: false, reason: reason.clone() }.encode();
        let reason = reason[..REASON_BYTES_MAX].to_string();
        let expected = Reply::Failed { is_final: false, reason };
        assert_eq!(Reply::decode(body(&frame)), Some(expected));
    }
}
