//! Byte-pair encoding of one piece: of all neighbours that may merge, those of the lowest rank do,
//! the first ones of them, until none may.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;
use serde::Deserialize;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::Unsupported;
use crate::spelling::ByteAlphabet;

/// From here on a heap finds the next merge sooner than a look at all of them.
const LONG_BYTES: usize = 64;

/// No merge: ranks are below.
const NEVER: u32 = u32::MAX;

const UNREADABLE: Unsupported = "has merges in an unknown form";

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    /// What the two become.
    id: u32,
}

pub(super) struct Merges {
    /// The token of each byte.
    bytes: [u32; 256],
    merges: HashMap<(u32, u32), Merge>,
}

/// What is left of a piece, and the memory for it, kept from one piece to the next.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// (rank, position); some are out of date.
    next: BinaryHeap<Reverse<(u32, u32)>>,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// The merge with the right neighbour.
    merge: Merge,
    /// Positions of neighbours in long pieces.
    left: u32,
    right: u32,
}

impl Merges {
    pub(super) fn read(tokenizer_json: &[u8], model: &BPE) -> Result<Merges, Unsupported> {
        let (alphabet, mut bytes) = (ByteAlphabet::new(), [0; 256]);
        for byte in 0..=u8::MAX {
            let id = model.token_to_id(alphabet.character(byte).encode_utf8(&mut [0; 4]));
            bytes[usize::from(byte)] = id.ok_or("has no token for some byte")?;
        }
        let pairs = pairs(tokenizer_json)?;
        let mut merges = HashMap::with_capacity(pairs.len());
        let mut whole = String::new();
        for (rank, Pair(left, right)) in (0..NEVER).zip(&pairs) {
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            let id = |token: &str| model.token_to_id(token).ok_or(UNREADABLE);
            // Of a pair that is there twice, the last one counts.
            merges.insert((id(left)?, id(right)?), Merge { rank, id: id(&whole)? });
        }
        Ok(Merges { bytes, merges })
    }

    /// Appends the tokens of a piece of less than 4 GiB.
    pub(super) fn encode(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        scratch.symbols.clear();
        let ends = piece.iter().skip(1).map(Some).chain([None]);
        scratch.symbols.extend(piece.iter().zip(ends).enumerate().map(|(at, (&byte, next))| {
            let id = self.bytes[usize::from(byte)];
            let next = next.map(|&next| self.bytes[usize::from(next)]);
            let (left, right) = ((at as u32).wrapping_sub(1), at as u32 + 1);
            Symbol { id, merge: self.merge(id, next), left, right }
        }));
        if piece.len() < LONG_BYTES {
            self.merge_short(&mut scratch.symbols);
        } else {
            self.merge_long(scratch);
        }
        ids.extend(scratch.symbols.iter().map(|symbol| symbol.id));
    }

    fn merge(&self, left: u32, right: Option<u32>) -> Merge {
        let merge = right.and_then(|right| self.merges.get(&(left, right)));
        merge.copied().unwrap_or(Merge { rank: NEVER, id: 0 })
    }

    fn merge_short(&self, symbols: &mut Vec<Symbol>) {
        loop {
            let mut best = (NEVER, 0);
            for (at, symbol) in symbols.iter().enumerate() {
                if symbol.merge.rank < best.0 {
                    best = (symbol.merge.rank, at);
                }
            }
            let (rank, at) = best;
            if rank == NEVER {
                return;
            }
            symbols[at].id = symbols[at].merge.id;
            symbols.remove(at + 1);
            let right = symbols.get(at + 1).map(|symbol| symbol.id);
            symbols[at].merge = self.merge(symbols[at].id, right);
            if at > 0 {
                symbols[at - 1].merge = self.merge(symbols[at - 1].id, Some(symbols[at].id));
            }
        }
    }

    /// The same in O(n log n), for long pieces: symbols stay where they are, linked to each other.
    fn merge_long(&self, scratch: &mut Scratch) {
        let Scratch { symbols, next } = scratch;
        next.clear();
        let may_merge = |(at, symbol): (usize, &Symbol)| {
            (symbol.merge.rank != NEVER).then_some(Reverse((symbol.merge.rank, at as u32)))
        };
        next.extend(symbols.iter().enumerate().filter_map(may_merge));
        while let Some(Reverse((rank, at))) = next.pop() {
            let place = at as usize;
            // A symbol that is gone, or that has another neighbour by now, has another rank.
            if symbols[place].merge.rank != rank {
                continue;
            }
            let right = symbols[place].right as usize;
            let gone = symbols[right];
            symbols[right].merge.rank = NEVER;
            symbols[place].id = symbols[place].merge.id;
            symbols[place].right = gone.right;
            if let Some(right) = symbols.get_mut(gone.right as usize) {
                right.left = at;
            }
            for at in [symbols[place].left, at] {
                let Some(&Symbol { id, right, .. }) = symbols.get(at as usize) else {
                    continue;
                };
                let right = symbols.get(right as usize).map(|symbol| symbol.id);
                let merge = self.merge(id, right);
                symbols[at as usize].merge = merge;
                if merge.rank != NEVER {
                    next.push(Reverse((merge.rank, at)));
                }
            }
        }
        let mut at = 0;
        let mut kept = 0;
        while let Some(&symbol) = symbols.get(at) {
            symbols[kept] = symbol;
            kept += 1;
            at = symbol.right as usize;
        }
        symbols.truncate(kept);
    }
}

#[derive(Deserialize)]
struct File<M> {
    model: ModelPart<M>,
}

#[derive(Deserialize)]
struct ModelPart<M> {
    merges: Vec<M>,
}

#[derive(Deserialize)]
struct Pair<'a>(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Line<'a>(#[serde(borrow)] Cow<'a, str>);

/// The merges of a file, those of the lowest rank first. They are pairs, or lines as in older files.
fn pairs(tokenizer_json: &[u8]) -> Result<Vec<Pair<'_>>, Unsupported> {
    if let Ok(file) = serde_json::from_slice::<File<Pair<'_>>>(tokenizer_json) {
        return Ok(file.model.merges);
    }
    let file: File<Line<'_>> = serde_json::from_slice(tokenizer_json).map_err(|_| UNREADABLE)?;
    let lines = file.model.merges.into_iter().filter(|line| !line.0.starts_with("#version"));
    let pair = |line: Line<'_>| {
        let (left, right) = line.0.split_once(' ').ok_or(UNREADABLE)?;
        Ok(Pair(left.to_owned().into(), right.to_owned().into()))
    };
    lines.map(pair).collect()
}
