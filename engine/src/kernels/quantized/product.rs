//! Products with quantised weights: panels, each by the kernel that the CPU has.

use super::activations::Activations;
use super::panel::{PanelGroup, PanelRows};
use super::{GROUP, OUTPUTS, QuantFormat, portable};
use crate::kernels::tile::{Output, Tile};

/// Which kernels compute products of quantised weights; all give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizedPath {
    /// Plain arithmetic.
    Portable,
    /// `vpmaddubsw` on AVX2.
    Avx2,
    /// `vpdpbusd` on AVX-512 VNNI.
    Avx512Vnni,
}

impl QuantizedPath {
    /// All of them, the fastest last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512Vnni];

    /// The fastest that this CPU has.
    pub fn detect() -> Self {
        let available = Self::ALL.into_iter().rev().find(|path| path.is_available());
        available.unwrap_or(Self::Portable)
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// Computes some outputs of all rows (`tile`, which begins at a multiple of 16) with weights (`bytes`:
/// `[outputs, inputs]` in blocks of `format`). Nobody else has these columns of y.
pub fn tile(
    path: QuantizedPath,
    x: &Activations,
    (format, bytes): (QuantFormat, &[u8]),
    tile: Tile,
    y: &Output<'_>,
) {
    let (row_bytes, end) = (format.row_bytes(tile.inputs), tile.outputs.end);
    assert!(bytes.len() >= end * row_bytes && y.has(&tile), "a tile of {format} and of y");
    assert_eq!((x.rows(), x.groups() * GROUP), (tile.rows, tile.inputs), "x is [rows, inputs]");
    let mut scratch = Vec::new();
    for first in tile.outputs.step_by(OUTPUTS) {
        let count = OUTPUTS.min(end - first);
        let rows = &bytes[first * row_bytes..(first + count) * row_bytes];
        let padded;
        let bytes = match count {
            OUTPUTS => rows,
            _ => {
                padded = [rows, &vec![0; (OUTPUTS - count) * row_bytes][..]].concat();
                &padded[..]
            }
        };
        let panel = PanelRows { format, bytes, row_bytes };
        // SAFETY: these columns are within y, as asserted, and nobody else's.
        let set = |row: usize, sums: &[f32; OUTPUTS]| unsafe {
            y.columns(row, first..first + count).copy_from_slice(&sums[..count]);
        };
        multiply_panel(path, panel, x, &mut scratch, set);
    }
}

/// One panel with all rows of activations; `set` takes what comes out for each.
fn multiply_panel(
    path: QuantizedPath,
    panel: PanelRows<'_>,
    x: &Activations,
    scratch: &mut Vec<PanelGroup>,
    set: impl Fn(usize, &[f32; OUTPUTS]),
) {
    match path {
        #[cfg(target_arch = "x86_64")]
        QuantizedPath::Avx512Vnni => super::avx512::multiply_panel(panel, x, scratch, set),
        #[cfg(target_arch = "x86_64")]
        QuantizedPath::Avx2 => {
            scratch.resize(x.groups(), PanelGroup::ZERO);
            super::avx2::put_down(panel, scratch);
            for tile in x.tiles() {
                super::avx2::multiply(panel.format, scratch, tile, &set);
            }
        }
        _ => {
            scratch.resize(x.groups(), PanelGroup::ZERO);
            panel.unpack(scratch);
            for tile in x.tiles() {
                for row in 0..tile.rows {
                    set(tile.first_row + row, &portable::row(panel.format, scratch, tile, row));
                }
            }
        }
    }
}
