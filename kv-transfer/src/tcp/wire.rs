//! The frames of the tcp way. Pure: bytes in, values out; every length is checked before anything
//! is allocated, and every payload against its checksum.
//!
//! A frame is a header of 36 bytes and a payload. Numbers are little-endian.
//!
//! | Bytes | Field |
//! |---|---|
//! | 0..4 | magic, `SKVT` |
//! | 4 | version, 1 |
//! | 5 | kind: 1 hello, 2 read, 3 blocks, 4 done, 5 refused, 6 and 9 borrow, 7 lent, 8 returned |
//! | 6..8 | zero |
//! | 8..12 | number of the read, from 1 on; 0 in a hello, or where a refusal stands for one |
//! | 12..16 | blocks: which of the read's runs this is, from 0 on; else zero |
//! | 16..20 | blocks: first block in the source pool; else zero |
//! | 20..24 | blocks: how many; else zero |
//! | 24..28 | bytes of the payload |
//! | 28..32 | CRC-32 of the payload |
//! | 32..36 | CRC-32 of bytes 0..32 |
//!
//! The source says `hello` with the bytes that it sends at once (8 bytes). The reader asks with
//! `read` (`ReadRequest`). Each run of blocks that it names is answered by one frame `blocks`, in
//! order, then `done`; or by `refused` (2 bytes, `Refusal`) at any point.
//!
//! A reader that has another way to the source's memory can borrow the blocks instead, by cuda (6)
//! or by ucx (9) (`ReadRequest`): it is told by `lent` how to reach the pool, reads for itself while
//! the source keeps the blocks pinned, says `returned`, and is answered `done` or `refused`.

use bytes::{Buf, BufMut};
use protocol::WorkerLife;

use crate::{Capability, KvLayout, Lease, LeaseError, LeaseId};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 36;

/// Runs that one read may name. What is asked for then fits into any socket's buffer, so that a
/// reader that asks while it is being sent blocks never waits for the source to listen.
pub const RUNS_MAX: usize = 1024;

/// Bytes of a worker's name or a numerics id.
const NAME_BYTES_MAX: usize = 256;

/// Bytes of the largest `read`.
pub const READ_BYTES_MAX: usize = 16 + 2 * 8 + 5 * 4 + 2 * (2 + NAME_BYTES_MAX) + 4 + 8 * RUNS_MAX;

/// Bytes of the payloads of `hello`, `done`, `refused` and `returned`.
pub const ANSWER_BYTES_MAX: usize = 64;

/// Bytes of the payload of `lent`.
pub const LENT_BYTES_MAX: usize = 16 << 10;

const MAGIC: [u8; 4] = *b"SKVT";
const VERSION: u8 = 1;

/// Why bytes are not a frame of ours. The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A checksum does not fit.
    #[error("a checksum is wrong")]
    Checksum,
    /// Something else.
    #[error("{0}")]
    Malformed(&'static str),
}

use WireError::Malformed;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The source's credit.
    Hello = 1,
    /// The reader asks for blocks.
    Read = 2,
    /// A run of blocks.
    Blocks = 3,
    /// The read's last frame: the lease has lasted.
    Done = 4,
    /// The read's last frame: it was not carried out, or not to its end.
    Refused = 5,
    /// The reader asks to read blocks for itself, by cuda.
    BorrowByCuda = 6,
    /// How it reaches them.
    Lent = 7,
    /// It has read them.
    Returned = 8,
    /// The reader asks to read blocks for itself, by ucx.
    BorrowByUcx = 9,
}

impl Kind {
    fn from_wire(kind: u8) -> Result<Self, WireError> {
        const KINDS: [Kind; 9] = [
            Kind::Hello,
            Kind::Read,
            Kind::Blocks,
            Kind::Done,
            Kind::Refused,
            Kind::BorrowByCuda,
            Kind::Lent,
            Kind::Returned,
            Kind::BorrowByUcx,
        ];
        let found = KINDS.into_iter().find(|known| *known as u8 == kind);
        found.ok_or(Malformed("an unknown kind of frame"))
    }
}

/// A run of blocks that follow each other in the source pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u32,
    /// How many.
    pub blocks: u32,
}

impl Run {
    /// The blocks' numbers.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..self.blocks).map(move |index| self.first.wrapping_add(index))
    }
}

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Which read it belongs to.
    pub read: u32,
    /// Of `Blocks`: which of the read's runs.
    pub position: u32,
    /// Of `Blocks`: which blocks.
    pub run: Run,
    /// Bytes of the payload.
    pub length: u32,
    payload_crc: u32,
}

impl Header {
    /// The header of a run of blocks.
    pub fn of_blocks(read: u32, position: u32, run: Run, payload: &[u8]) -> Self {
        Self { position, run, ..Self::of(Kind::Blocks, read, payload) }
    }

    /// The header of any other frame.
    pub fn of(kind: Kind, read: u32, payload: &[u8]) -> Self {
        let (length, payload_crc) = (payload.len() as u32, crc32fast::hash(payload));
        Self { kind, read, position: 0, run: Run::default(), length, payload_crc }
    }

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_slice(&MAGIC);
        rest.put_slice(&[VERSION, self.kind as u8, 0, 0]);
        let Run { first, blocks } = self.run;
        for field in [self.read, self.position, first, blocks, self.length, self.payload_crc] {
            rest.put_u32_le(field);
        }
        let crc = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. The length is as it was sent: check it before use.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let (covered, mut crc) = bytes.split_at(HEADER_BYTES - 4);
        let Some(mut rest) = covered.strip_prefix(&MAGIC) else {
            return Err(Malformed("it does not speak the KV protocol"));
        };
        if rest.get_u8() != VERSION {
            return Err(Malformed("it speaks another version of the KV protocol"));
        }
        if crc.get_u32_le() != crc32fast::hash(covered) {
            return Err(WireError::Checksum);
        }
        let kind = Kind::from_wire(rest.get_u8())?;
        if rest.get_u16_le() != 0 {
            return Err(Malformed("reserved bytes are not zero"));
        }
        let [read, position, first, blocks, length, payload_crc] =
            std::array::from_fn(|_| rest.get_u32_le());
        let is_numbered = kind == Kind::Refused || (read != 0) == (kind != Kind::Hello);
        let is_placed = kind == Kind::Blocks || [position, first, blocks] == [0; 3];
        if !is_numbered || !is_placed {
            return Err(Malformed("a field that its kind of frame does not have"));
        }
        Ok(Self { kind, read, position, run: Run { first, blocks }, length, payload_crc })
    }

    /// Whether this is the payload that was sent.
    pub fn check(&self, payload: &[u8]) -> Result<(), WireError> {
        if payload.len() != self.length as usize {
            return Err(Malformed("a payload of another length"));
        }
        if crc32fast::hash(payload) != self.payload_crc {
            return Err(WireError::Checksum);
        }
        Ok(())
    }
}

/// Writes a frame whose payload is small.
pub fn encode_frame(kind: Kind, read: u32, payload: &[u8]) -> Vec<u8> {
    [&Header::of(kind, read, payload).encode(), payload].concat()
}

/// What a reader asks for.
#[derive(PartialEq, Eq)]
pub struct ReadRequest {
    /// Whose blocks.
    pub worker: WorkerLife,
    /// By what right.
    pub lease: Lease,
    /// How the reader understands them.
    pub layout: KvLayout,
    /// Which.
    pub runs: Vec<Run>,
}

impl ReadRequest {
    /// Writes the payload of `read`. Errors: a name that is too long, too many runs.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let layout = &self.layout;
        let mut bytes = Vec::with_capacity(READ_BYTES_MAX);
        bytes.put_slice(&self.lease.capability.to_bytes());
        bytes.put_u64_le(self.lease.id.0);
        bytes.put_u64_le(self.worker.incarnation.0);
        let (heads, dim) = (layout.kv_heads, layout.head_dim);
        for size in [layout.block_size, layout.layers, heads, dim, layout.element_bytes] {
            bytes.put_u32_le(u32::try_from(size).map_err(|_| Malformed("a KV layout too large"))?);
        }
        put_name(&mut bytes, self.worker.id.as_str())?;
        put_name(&mut bytes, &layout.numerics_id)?;
        if self.runs.len() > RUNS_MAX {
            return Err(Malformed("too many runs in one read"));
        }
        bytes.put_u32_le(self.runs.len() as u32);
        for run in &self.runs {
            bytes.put_u32_le(run.first);
            bytes.put_u32_le(run.blocks);
        }
        Ok(bytes)
    }

    /// Reads the payload of `read`.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut rest = Rest(payload);
        let capability = Capability::from_bytes(rest.take(16)?).ok_or(Malformed(SHORT))?;
        let lease = Lease { id: LeaseId(rest.u64()?), capability };
        let incarnation = rest.u64()?;
        let [block_size, layers, kv_heads, head_dim, element_bytes] =
            [rest.u32()?, rest.u32()?, rest.u32()?, rest.u32()?, rest.u32()?].map(|n| n as usize);
        let worker = WorkerLife::new(rest.name()?, incarnation);
        let numerics_id = rest.name()?.to_string();
        let runs = rest.runs()?;
        if !rest.0.is_empty() {
            return Err(Malformed("bytes behind a read"));
        }
        let layout =
            KvLayout { numerics_id, block_size, layers, kv_heads, head_dim, element_bytes };
        Ok(Self { worker, lease, layout, runs })
    }
}

const SHORT: &str = "a read that ends too early";

fn put_name(bytes: &mut Vec<u8>, name: &str) -> Result<(), WireError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Malformed("a name that is too long"));
    }
    bytes.put_u16_le(name.len() as u16);
    bytes.put_slice(name.as_bytes());
    Ok(())
}

/// What of a payload is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Malformed(SHORT))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(self.take(4)?.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(self.take(8)?.get_u64_le())
    }

    fn name(&mut self) -> Result<&'a str, WireError> {
        let length = self.take(2)?.get_u16_le() as usize;
        if length > NAME_BYTES_MAX {
            return Err(Malformed("a name that is too long"));
        }
        str::from_utf8(self.take(length)?).map_err(|_| Malformed("a name that is not UTF-8"))
    }

    fn runs(&mut self) -> Result<Vec<Run>, WireError> {
        let count = self.u32()? as usize;
        if count > RUNS_MAX {
            return Err(Malformed("too many runs in one read"));
        }
        (0..count).map(|_| Ok(Run { first: self.u32()?, blocks: self.u32()? })).collect()
    }
}

/// Why a source does not send blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// Too many connections or bytes under way.
    Busy = 1,
    /// It has not this life's pool.
    SourceGone = 2,
    /// Its layout is another.
    LayoutMismatch = 3,
    /// More bytes than it has granted credit for, or blocks that its pool does not have.
    OverCredit = 4,
    /// The lease is unknown, has ended, or the capability is another's: nobody can tell which.
    LeaseUnknown = 5,
    /// The lease was not renewed in time.
    LeaseExpired = 6,
    /// A block was not announced.
    NotAnnounced = 7,
    /// It does not lend blocks this way, or not now.
    NotLent = 8,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::Busy,
        Self::SourceGone,
        Self::LayoutMismatch,
        Self::OverCredit,
        Self::LeaseUnknown,
        Self::LeaseExpired,
        Self::NotAnnounced,
        Self::NotLent,
    ];

    /// The payload of `refused`.
    pub fn encode(self) -> [u8; 2] {
        (self as u16).to_le_bytes()
    }

    /// Reads the payload of `refused`.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let known = Self::ALL.into_iter().find(|refusal| refusal.encode() == payload);
        known.ok_or(Malformed("it refused for an unknown reason"))
    }
}

impl From<LeaseError> for Refusal {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Expired => Self::LeaseExpired,
            LeaseError::NotAnnounced => Self::NotAnnounced,
            LeaseError::Unknown | LeaseError::BeingRead | LeaseError::TooMany => Self::LeaseUnknown,
        }
    }
}
