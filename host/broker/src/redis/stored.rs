//! Reading a result as Celery keeps it.

use std::borrow::Cow;

use rtask_protocol::{Record, content::Compression};

use crate::BrokerError;

/// How Celery begins a value that it has compressed; the content type, a NUL and the compressed bytes follow
/// (`celery/backends/base.py`, `compress_payload`; golden/03_result_backend_redis/53_result_no_expiry_gzip.json).
const COMPRESSED: &[u8] = b"\0celery-compressed\0";
/// A compressed result is read up to so many bytes of text.
const MAX_TEXT: usize = 64 << 20;

/// The record in a value kept under `key`.
pub(super) fn decode(key: &str, kept: &[u8]) -> Result<Record, BrokerError> {
    let damaged = |reason: String| BrokerError::Damaged { what: format!("the result under `{key}`"), reason };
    let plain = plain(kept).map_err(damaged)?;
    serde_json::from_slice(&plain).map_err(|error| damaged(error.to_string()))
}

/// A kept value's text, decompressed if need be; or why that cannot be had.
pub(super) fn plain(kept: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let Some(compressed) = kept.strip_prefix(COMPRESSED) else {
        return Ok(Cow::Borrowed(kept));
    };
    let end = compressed.iter().position(|&byte| byte == 0).ok_or("it is compressed in a way that it does not name")?;
    let content_type = String::from_utf8_lossy(&compressed[..end]);
    let compression: Compression = content_type.parse().map_err(|error| format!("it is compressed: {error}"))?;
    compression.decompress(&compressed[end + 1..], MAX_TEXT).map(Cow::Owned).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"status": "SUCCESS", "result": 4, "traceback": null, "children": [], "date_done": null,
        "task_id": "t", "name": "tasks.add", "args": [2, 2], "worker": "w1@host", "queue": "celery", "retries": 0}"#;

    fn compressed(content_type: &str, body: &[u8]) -> Vec<u8> {
        [COMPRESSED, content_type.as_bytes(), b"\0", body].concat()
    }

    #[test]
    fn a_compressed_record_reads_as_a_plain_one() {
        assert_eq!(decode("k", RECORD.as_bytes()).unwrap().result.get(), "4");
        for compression in [Compression::Zlib, Compression::Bzip2, Compression::Zstd] {
            let kept = compressed(compression.content_type(), &compression.compress(RECORD.as_bytes()));
            assert_eq!(decode("k", &kept).unwrap().result.get(), "4", "{compression}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let rows = [
            (compressed("application/x-brotli", b"x"), "application/x-brotli"),
            (compressed("application/x-gzip", b"x"), "gzip"),
            (COMPRESSED.to_vec(), "does not name"),
            (b"nonsense".to_vec(), "`k`"),
        ];
        for (kept, expected) in rows {
            let error = decode("k", &kept).unwrap_err();
            assert!(matches!(error, BrokerError::Damaged { .. }) && error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_compressed_bomb_stops_at_the_limit() {
        let bomb = Compression::Zlib.compress(&vec![b' '; MAX_TEXT + 1]);
        assert!(plain(&compressed("application/x-gzip", &bomb)).is_err());
    }
}
