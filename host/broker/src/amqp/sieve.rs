//! Keeps what publishers wrote from ending our process.
//!
//! lapin reads nested headers by recursion, and names as UTF-8. A few kilobytes of nested lists overflow its
//! thread's stack, which aborts the process, and a name that is not UTF-8 ends the connection; either message
//! would come again at once, for ever. So each frame that carries such fields passes through here first, and what
//! lapin could not bear is overwritten in place: names get question marks, and headers that are too deep become
//! one field of bytes. Everything else, bodies above all, passes through untouched.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::io::{AsyncRead, AsyncWrite};

/// Headers nested deeper than this are overwritten. Celery's go no deeper than a signature in a stamp.
const MAX_DEPTH: usize = 64;
/// What is read at a time, unless a frame needs more.
const BUFFER: usize = 64 * 1024;
/// A frame with fields has at most `frame_max` bytes, 128 KiB for RabbitMQ.
const MAX_BUFFER: usize = 1 << 20;

/// Frame types, and the frame's layout: type, channel, size, payload, end mark (AMQP 0-9-1, section 4.2.3).
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const FRAME_START: usize = 7;
const FRAME_END: usize = 1;

/// Methods of class basic with text that a publisher chose, and what comes before it.
const BASIC: u16 = 60;
const RETURN: (u16, &[Field]) = (50, &[Field::Fixed(2), Field::Name, Field::Name, Field::Name]);
const DELIVER: (u16, &[Field]) = (60, &[Field::Name, Field::Fixed(9), Field::Name, Field::Name]);
const GET_OK: (u16, &[Field]) = (71, &[Field::Fixed(9), Field::Name, Field::Name]);

/// The basic properties in their order, each present if its flag is, from the highest bit down (section 4.2.6.1).
const PROPERTIES: [Field; 14] = [
    Field::Name,
    Field::Name,
    Field::Table,
    Field::Fixed(1),
    Field::Fixed(1),
    Field::Name,
    Field::Name,
    Field::Name,
    Field::Name,
    Field::Fixed(8),
    Field::Name,
    Field::Name,
    Field::Name,
    Field::Name,
];

#[derive(Clone, Copy)]
enum Field {
    Fixed(usize),
    /// A short string.
    Name,
    Table,
}

/// A stream from which lapin can read safely.
pub(super) struct Sieve<S> {
    stream: S,
    buffer: Vec<u8>,
    /// `start..judged` may be read; `judged..end` is to be judged.
    start: usize,
    judged: usize,
    end: usize,
    /// So much of a frame without fields is still to come.
    passing: usize,
}

impl<S> Sieve<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; BUFFER], start: 0, judged: 0, end: 0, passing: 0 }
    }

    fn judge(&mut self) {
        loop {
            let passed = self.passing.min(self.end - self.judged);
            self.passing -= passed;
            self.judged += passed;
            let waiting = &mut self.buffer[self.judged..self.end];
            let Some(frame) = waiting.first_chunk::<FRAME_START>() else { return };
            let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
            let whole = FRAME_START.saturating_add(size).saturating_add(FRAME_END);
            match frame[0] {
                kind @ (METHOD | CONTENT_HEADER) => {
                    let Some(frame) = waiting.get_mut(..whole) else { return };
                    let payload = &mut frame[FRAME_START..FRAME_START + size];
                    // What is malformed is the server's own doing, and lapin ends the connection over it.
                    let _ = if kind == METHOD { clean_method(payload) } else { clean_properties(payload) };
                    self.judged += whole;
                }
                _ => self.passing = whole,
            }
        }
    }

    /// Make room for more of the frame that is not judged yet.
    fn make_room(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.judged..self.end, 0);
        self.end -= self.judged;
        (self.start, self.judged) = (0, 0);
        if self.end < self.buffer.len() {
            return Ok(());
        }
        if self.end >= MAX_BUFFER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the server sent a frame that is too large"));
        }
        self.buffer.resize(self.end * 2, 0);
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sieve<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.start == this.judged {
            this.make_room()?;
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut this.buffer[this.end..]))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.end += read;
            this.judge();
        }
        let read = into.len().min(this.judged - this.start);
        into[..read].copy_from_slice(&this.buffer[this.start..this.start + read]);
        this.start += read;
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sieve<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// Why a frame's fields were not read to their end.
#[derive(Debug, PartialEq)]
enum Flaw {
    Malformed,
    TooDeep,
}

fn clean_method(payload: &mut [u8]) -> Result<(), Flaw> {
    let mut cursor = Cursor { bytes: payload, at: 0 };
    if cursor.u16()? != BASIC {
        return Ok(());
    }
    let method = cursor.u16()?;
    for (number, fields) in [DELIVER, GET_OK, RETURN] {
        if method == number {
            return fields.iter().try_for_each(|field| cursor.clean(*field));
        }
    }
    Ok(())
}

fn clean_properties(payload: &mut [u8]) -> Result<(), Flaw> {
    let mut cursor = Cursor { bytes: payload, at: 0 };
    // Class, weight and the body's size.
    cursor.skip(12)?;
    let flags = cursor.u16()?;
    for (index, field) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << (15 - index)) != 0 {
            cursor.clean(field)?;
        }
    }
    Ok(())
}

struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn clean(&mut self, field: Field) -> Result<(), Flaw> {
        match field {
            Field::Fixed(size) => self.skip(size),
            Field::Name => self.clean_name(),
            Field::Table => {
                let (start, size) = self.block()?;
                match self.clean_table(start + size) {
                    Err(Flaw::TooDeep) => blot(&mut self.bytes[start..start + size]),
                    done => done?,
                }
                self.at = start + size;
                Ok(())
            }
        }
    }

    fn clean_name(&mut self) -> Result<(), Flaw> {
        let size = usize::from(self.u8()?);
        let start = self.at;
        self.skip(size)?;
        let name = &mut self.bytes[start..self.at];
        if std::str::from_utf8(name).is_err() {
            name.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        Ok(())
    }

    /// Walk the table that ends at `end`, without recursion.
    fn clean_table(&mut self, end: usize) -> Result<(), Flaw> {
        let mut open = [(0, false); MAX_DEPTH];
        open[0] = (end, true);
        let mut depth = 0;
        loop {
            let (end, is_table) = open[depth];
            if self.at == end {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
                continue;
            }
            if self.at > end {
                return Err(Flaw::Malformed);
            }
            if is_table {
                self.clean_name()?;
            }
            // Types as RabbitMQ's `rabbit_binary_parser` and lapin know them.
            match self.u8()? {
                b'V' => {}
                b't' | b'b' | b'B' => self.skip(1)?,
                b's' | b'u' | b'U' => self.skip(2)?,
                b'I' | b'i' | b'f' => self.skip(4)?,
                b'D' => self.skip(5)?,
                b'l' | b'L' | b'd' | b'T' => self.skip(8)?,
                b'S' | b'x' => {
                    let (start, size) = self.block()?;
                    self.at = start + size;
                }
                kind @ (b'A' | b'F') => {
                    let (start, size) = self.block()?;
                    depth += 1;
                    *open.get_mut(depth).ok_or(Flaw::TooDeep)? = (start + size, kind == b'F');
                }
                _ => return Err(Flaw::Malformed),
            }
        }
    }

    /// A length and so many bytes: where they begin, and how many they are.
    fn block(&mut self) -> Result<(usize, usize), Flaw> {
        let length = self.take(4)?;
        let size = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if size > self.bytes.len() - self.at {
            return Err(Flaw::Malformed);
        }
        Ok((self.at, size))
    }

    fn u8(&mut self) -> Result<u8, Flaw> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Flaw> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn skip(&mut self, size: usize) -> Result<(), Flaw> {
        self.take(size).map(drop)
    }

    fn take(&mut self, size: usize) -> Result<&[u8], Flaw> {
        let taken = self.bytes.get(self.at..self.at.saturating_add(size)).ok_or(Flaw::Malformed)?;
        self.at += size;
        Ok(taken)
    }
}

/// Turn a table into one without a name whose only field is what remains of its bytes. One that is too deep is
/// long enough for that.
fn blot(table: &mut [u8]) {
    const START: usize = 6;
    if let Some((start, rest)) = table.split_first_chunk_mut::<START>() {
        let [a, b, c, d] = u32::try_from(rest.len()).unwrap_or(u32::MAX).to_be_bytes();
        *start = [0, b'x', a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, executor::block_on, io::Cursor as Source};
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1], &size[..], payload, &[0xce]].concat()
    }

    fn name(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn block(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// A content header with a content type, headers and a correlation id.
    fn content_header(content_type: &[u8], table: &[u8], id: &[u8]) -> Vec<u8> {
        let start = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0b1010_0100, 0];
        frame(CONTENT_HEADER, &[&start[..], &name(content_type), &block(table), &name(id)].concat())
    }

    fn nested(depth: usize) -> Vec<u8> {
        let list = |inner: Vec<u8>| [b"A", &block(&inner)[..]].concat();
        [name(b"deep"), (0..depth).fold(b"V".to_vec(), |inner, _| list(inner))].concat()
    }

    fn sift(bytes: &[u8], chunk: usize) -> Vec<u8> {
        let mut sieve = Sieve::new(Source::new(bytes.to_vec()));
        let (mut sifted, mut part) = (Vec::new(), vec![0; chunk]);
        loop {
            match block_on(sieve.read(&mut part)).unwrap() {
                0 => return sifted,
                read => sifted.extend_from_slice(&part[..read]),
            }
        }
    }

    #[test]
    fn what_is_sound_passes_untouched() {
        let fields = [
            name(b"s"),
            [b"S", &block(b"\xff\xfe")[..]].concat(),
            name("ł".as_bytes()),
            b"V".to_vec(),
            name(b"t"),
            b"t\x01".to_vec(),
            name(b"I"),
            b"I\0\0\0\x01".to_vec(),
            name(b"D"),
            b"D\x02\0\0\0\x01".to_vec(),
            name(b"l"),
            b"l\0\0\0\0\0\0\0\x01".to_vec(),
            name(b"F"),
            [b"F", &block(&nested(3))[..]].concat(),
        ];
        let stream = [
            frame(METHOD, &[0, 10, 0, 10]),
            content_header(b"application/json", &fields.concat(), b"id"),
            content_header(b"", &nested(MAX_DEPTH - 1), b""),
            frame(3, &[0xff; 200_000]),
            frame(8, b""),
        ]
        .concat();
        for chunk in [1, 7, 4096, 1 << 20] {
            assert!(sift(&stream, chunk) == stream);
        }
    }

    #[test]
    fn headers_that_are_too_deep_become_bytes() {
        for depth in [MAX_DEPTH, 1_000, 20_000] {
            let table = nested(depth);
            let sifted = sift(&content_header(b"application/json", &table, b"\xffid"), 4096);
            let expected = [b"\0x", &block(&table[6..])[..]].concat();
            assert!(sifted == content_header(b"application/json", &expected, b"?id"));
        }
    }

    #[test]
    fn names_that_are_not_utf_8_get_question_marks() {
        let table = |key: &[u8]| [name(key), b"V".to_vec()].concat();
        let sifted = sift(&content_header(b"\xfe", &table(b"a\xff\xfe"), b"\xc3"), 4096);
        assert!(sifted == content_header(b"?", &table(b"a??"), b"?"));
        let deliver = |key: &[u8]| {
            frame(METHOD, &[&[0, 60, 0, 60], &name(b"tag")[..], &[0; 9], &name(b"exchange"), &name(key)].concat())
        };
        assert!(sift(&deliver(b"key.\xff"), 4096) == deliver(b"key.?"));
    }

    #[test]
    fn a_frame_without_end_is_an_error() {
        let endless = [&[METHOD, 0, 1, 0xff, 0xff, 0xff, 0xff][..], &vec![0; MAX_BUFFER]].concat();
        let mut sieve = Sieve::new(Source::new(endless));
        let error = block_on(sieve.read(&mut [0; 16])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn no_bytes_are_lost_and_none_make_it_panic(
            kind in 0..4_u8,
            payload in prop::collection::vec(any::<u8>(), 0..300),
            chunk in 1..100_usize,
        ) {
            let stream = [frame(kind, &payload), content_header(b"a", &payload, b"b")].concat();
            prop_assert_eq!(sift(&stream, chunk).len(), stream.len());
        }
    }
}
