//! How a vocabulary spells bytes.

use serde_json::Value;

use crate::TokenizerError;

/// How the vocabulary spells bytes.
///
/// The decoder of the file works on whole texts and, in the SentencePiece family, also drops the
/// space before the first word. What is generated continues a prompt, so that space is kept here.
pub(crate) enum Spelling {
    /// Each byte is one printable character (GPT-2).
    ByteLevel(ByteAlphabet),
    /// Text with a mark for spaces, and `<0xNN>` for single bytes (SentencePiece).
    Pieces { space: Option<String>, byte_fallback: bool },
}

impl Spelling {
    pub(crate) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Spelling, TokenizerError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| TokenizerError::Load(error.into()))?;
        let (mut space, mut byte_fallback) = (None, false);
        let steps = match &decoder["decoders"] {
            Value::Array(steps) => steps.as_slice(),
            _ if decoder.is_null() => &[],
            _ => std::slice::from_ref(&decoder),
        };
        for step in steps {
            match step["type"].as_str().unwrap_or_default() {
                "ByteLevel" => return Ok(Spelling::ByteLevel(ByteAlphabet::new())),
                "Metaspace" => space = step["replacement"].as_str().map(str::to_owned),
                "Replace" if step["content"] == " " => {
                    space = step["pattern"]["String"].as_str().map(str::to_owned);
                }
                "ByteFallback" => byte_fallback = true,
                "Fuse" | "Strip" => {}
                other => return Err(TokenizerError::UnsupportedDecoder(other.to_owned())),
            }
        }
        Ok(Spelling::Pieces { space, byte_fallback })
    }

    pub(crate) fn append(&self, piece: &str, bytes: &mut Vec<u8>) {
        match self {
            Spelling::ByteLevel(alphabet) => {
                let start = bytes.len();
                for character in piece.chars() {
                    let Some(byte) = alphabet.byte(character) else {
                        // Not an encoded token at all; it stands for itself.
                        bytes.truncate(start);
                        bytes.extend_from_slice(piece.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Spelling::Pieces { space, byte_fallback } => {
                if let Some(byte) = fallback_byte(piece).filter(|_| *byte_fallback) {
                    bytes.push(byte);
                } else if let Some(space) = space {
                    bytes.extend_from_slice(piece.replace(space.as_str(), " ").as_bytes());
                } else {
                    bytes.extend_from_slice(piece.as_bytes());
                }
            }
        }
    }
}

/// The byte of a piece such as `<0x0A>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's table of a printable character for each byte: printable Latin-1 stands for itself, the
/// other bytes are counted up from U+0100.
pub(crate) struct ByteAlphabet {
    characters: Vec<char>,
    /// By code point.
    bytes: Vec<Option<u8>>,
}

impl ByteAlphabet {
    pub(crate) fn new() -> ByteAlphabet {
        let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut others = '\u{100}'..;
        let mut alphabet = ByteAlphabet { characters: Vec::new(), bytes: vec![None; 512] };
        for byte in 0..=u8::MAX {
            let own = printable(byte).then_some(char::from(byte));
            let character = own.or_else(|| others.next()).unwrap_or_default();
            alphabet.characters.push(character);
            alphabet.bytes[character as usize] = Some(byte);
        }
        alphabet
    }

    pub(crate) fn byte(&self, character: char) -> Option<u8> {
        self.bytes.get(character as usize).copied().flatten()
    }

    pub(crate) fn character(&self, byte: u8) -> char {
        self.characters[usize::from(byte)]
    }
}
