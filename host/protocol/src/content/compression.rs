//! Bodies made smaller (`kombu/compression.py`).

use std::{
    fmt,
    io::{self, Read, Write as _},
    str::FromStr,
};

use super::ContentError;

/// The window that a zstd frame may ask for: 2 to this power of bytes, 8 MiB, as for every level below the `ultra` ones.
const ZSTD_WINDOW_LOG: u32 = 23;

/// A way to make a body smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Celery's `gzip`, which is a zlib stream (golden/01_amqp_task_messages/50_compression_gzip.json).
    Zlib,
    Bzip2,
    Zstd,
}

/// Why a name is no compression's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not known; use gzip, bzip2 or zstd")]
pub struct CompressionError(String);

impl Compression {
    /// The header `compression`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Zlib => "application/x-gzip",
            Self::Bzip2 => "application/x-bz2",
            Self::Zstd => "application/zstd",
        }
    }

    /// At the levels that Python's modules use by default.
    pub fn compress(self, body: &[u8]) -> Vec<u8> {
        let compressed = match self {
            Self::Zlib => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(9));
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Zstd => zstd::encode_all(body, 3),
        };
        compressed.expect("memory takes every byte")
    }

    /// Stops at `limit` bytes, whatever the stream says of its size.
    ///
    /// # Errors
    /// For what is no such stream, and for one that holds more.
    pub fn decompress(self, body: &[u8], limit: usize) -> Result<Vec<u8>, ContentError> {
        let read = match self {
            // Other clients take the content type at its word.
            Self::Zlib if body.starts_with(&[0x1f, 0x8b]) => take(flate2::read::MultiGzDecoder::new(body), limit),
            Self::Zlib => take(flate2::read::ZlibDecoder::new(body), limit),
            Self::Bzip2 => take(bzip2::read::MultiBzDecoder::new(body), limit),
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(body).and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                take(decoder, limit)
            }),
        };
        match read {
            Ok(plain) if plain.len() <= limit => Ok(plain),
            Ok(_) => Err(ContentError::TooLarge { limit }),
            Err(error) => Err(ContentError::Damaged { compression: self, reason: crate::json::reason(&error) }),
        }
    }
}

/// At most one byte more than `limit`.
fn take(stream: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::new();
    stream.take(most).read_to_end(&mut plain)?;
    Ok(plain)
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zlib => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Zstd => "zstd",
        })
    }
}

/// A name as in `task_compression`, or a content type.
impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(name: &str) -> Result<Self, CompressionError> {
        match name {
            "gzip" | "zlib" | "application/x-gzip" | "application/gzip" => Ok(Self::Zlib),
            "bzip2" | "bzip" | "application/x-bz2" => Ok(Self::Bzip2),
            "zstd" | "zstandard" | "application/zstd" => Ok(Self::Zstd),
            other => Err(CompressionError(other.escape_debug().to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::Zlib, Compression::Bzip2, Compression::Zstd];

    #[test]
    fn compressions_go_by_celerys_names() {
        for compression in ALL {
            assert_eq!(compression.content_type().parse(), Ok(compression));
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        for unknown in ["lzma", "application/x-lzma", "brotli", ""] {
            assert!(unknown.parse::<Compression>().unwrap_err().to_string().contains("use gzip, bzip2 or zstd"));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let plain = vec![0; 10 << 20];
        for compression in ALL {
            let bomb = compression.compress(&plain);
            assert!(bomb.len() < 20_000);
            let error = compression.decompress(&bomb, 1024).unwrap_err();
            assert!(matches!(error, ContentError::TooLarge { limit: 1024 }), "{compression}: {error}");
            assert_eq!(compression.decompress(&bomb, 10 << 20).unwrap(), plain);
        }
    }

    #[test]
    fn a_cut_or_changed_stream_is_damaged() {
        for compression in ALL {
            let whole = compression.compress("some text, some text, some text".as_bytes());
            for body in [&whole[..whole.len() / 2], b"plain", &[]] {
                let error = compression.decompress(body, 1024).unwrap_err();
                assert!(matches!(error, ContentError::Damaged { .. }), "{compression}: {error}");
            }
        }
    }

    #[test]
    fn a_true_gzip_stream_is_read_too() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(b"[[], {}, {}]").unwrap();
        let body = encoder.finish().unwrap();
        assert_eq!(Compression::Zlib.decompress(&body, 100).unwrap(), b"[[], {}, {}]");
    }
}
