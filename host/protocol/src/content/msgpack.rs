//! msgpack, as kombu uses it: text and bytes apart, no extension types.

use rmp::{Marker, encode};
use serde_json::Value;

use super::{
    ContentError, Serializer,
    text::{JsonText, Scalar, bytes_of},
};

/// JSON text of one msgpack value. Nothing is reserved for what a length only claims.
pub(super) fn read(bytes: &[u8], limit: usize) -> Result<Vec<u8>, ContentError> {
    let mut input = Input(bytes);
    let mut json = JsonText::new(limit);
    // How many values each open array or map still lacks; keys count.
    let mut open: Vec<u64> = Vec::new();
    loop {
        let parts = read_one(&mut input, &mut json)?;
        open.extend(parts);
        while open.last() == Some(&0) {
            open.pop();
            json.close()?;
        }
        match open.last_mut() {
            Some(lacking) => *lacking -= 1,
            None => break,
        }
    }
    match input.0.is_empty() {
        true => Ok(json.finish()),
        false => Err(malformed("more than one value")),
    }
}

/// One scalar, or the start of a value with so many parts.
fn read_one(input: &mut Input<'_>, json: &mut JsonText) -> Result<Option<u64>, ContentError> {
    let mut integer = |number: i128| json.scalar(&Scalar::Integer(&number.to_string()));
    match Marker::from_u8(input.byte()?) {
        Marker::FixPos(number) => integer(number.into())?,
        Marker::FixNeg(number) => integer(number.into())?,
        Marker::U8 => integer(u8::from_be_bytes(input.array()?).into())?,
        Marker::U16 => integer(u16::from_be_bytes(input.array()?).into())?,
        Marker::U32 => integer(u32::from_be_bytes(input.array()?).into())?,
        Marker::U64 => integer(u64::from_be_bytes(input.array()?).into())?,
        Marker::I8 => integer(i8::from_be_bytes(input.array()?).into())?,
        Marker::I16 => integer(i16::from_be_bytes(input.array()?).into())?,
        Marker::I32 => integer(i32::from_be_bytes(input.array()?).into())?,
        Marker::I64 => integer(i64::from_be_bytes(input.array()?).into())?,
        Marker::F32 => json.scalar(&Scalar::Float(f32::from_be_bytes(input.array()?).into()))?,
        Marker::F64 => json.scalar(&Scalar::Float(f64::from_be_bytes(input.array()?)))?,
        Marker::Null => json.scalar(&Scalar::Null)?,
        Marker::True => json.scalar(&Scalar::Bool(true))?,
        Marker::False => json.scalar(&Scalar::Bool(false))?,
        Marker::FixStr(length) => text(input, json, length.into())?,
        Marker::Str8 => text_of(input, json, Width::One)?,
        Marker::Str16 => text_of(input, json, Width::Two)?,
        Marker::Str32 => text_of(input, json, Width::Four)?,
        Marker::Bin8 => bytes_of_width(input, json, Width::One)?,
        Marker::Bin16 => bytes_of_width(input, json, Width::Two)?,
        Marker::Bin32 => bytes_of_width(input, json, Width::Four)?,
        Marker::FixArray(length) => return array(json, length.into()),
        Marker::Array16 => return array(json, input.length(Width::Two)?),
        Marker::Array32 => return array(json, input.length(Width::Four)?),
        Marker::FixMap(length) => return map(json, length.into()),
        Marker::Map16 => return map(json, input.length(Width::Two)?),
        Marker::Map32 => return map(json, input.length(Width::Four)?),
        Marker::FixExt1
        | Marker::FixExt2
        | Marker::FixExt4
        | Marker::FixExt8
        | Marker::FixExt16
        | Marker::Ext8
        | Marker::Ext16
        | Marker::Ext32 => return Err(ContentError::NotJson("a msgpack extension type")),
        Marker::Reserved => return Err(malformed("byte 0xc1, which means nothing")),
    }
    Ok(None)
}

fn array(json: &mut JsonText, length: u32) -> Result<Option<u64>, ContentError> {
    json.open_array()?;
    Ok(Some(length.into()))
}

fn map(json: &mut JsonText, length: u32) -> Result<Option<u64>, ContentError> {
    json.open_object()?;
    Ok(Some(u64::from(length) * 2))
}

fn text_of(input: &mut Input<'_>, json: &mut JsonText, width: Width) -> Result<(), ContentError> {
    let length = input.length(width)?;
    text(input, json, length)
}

fn text(input: &mut Input<'_>, json: &mut JsonText, length: u32) -> Result<(), ContentError> {
    let text = std::str::from_utf8(input.slice(length)?).map_err(|_| malformed("text that is not UTF-8"))?;
    json.scalar(&Scalar::Text(text))
}

fn bytes_of_width(input: &mut Input<'_>, json: &mut JsonText, width: Width) -> Result<(), ContentError> {
    let length = input.length(width)?;
    json.scalar(&Scalar::Bytes(input.slice(length)?))
}

/// Of a length's own field, in bytes.
enum Width {
    One,
    Two,
    Four,
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn slice(&mut self, length: u32) -> Result<&'a [u8], ContentError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (slice, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ContentError> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, ContentError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn length(&mut self, width: Width) -> Result<u32, ContentError> {
        Ok(match width {
            Width::One => self.byte()?.into(),
            Width::Two => u16::from_be_bytes(self.array()?).into(),
            Width::Four => u32::from_be_bytes(self.array()?),
        })
    }
}

fn malformed(reason: &str) -> ContentError {
    ContentError::Malformed { serializer: Serializer::Msgpack, reason: reason.to_owned() }
}

/// The value in msgpack's shortest form.
pub(super) fn write(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, value).expect("memory takes every byte");
    out
}

/// Depth is bounded by the parser that made the value.
fn append(out: &mut Vec<u8>, value: &Value) -> Result<(), encode::ValueWriteError> {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    match value {
        Value::Null => encode::write_nil(out).map_err(encode::ValueWriteError::InvalidMarkerWrite)?,
        Value::Bool(flag) => encode::write_bool(out, *flag).map_err(encode::ValueWriteError::InvalidMarkerWrite)?,
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => drop(encode::write_uint(out, number)?),
            (None, Some(number), _) => drop(encode::write_sint(out, number)?),
            (None, None, number) => encode::write_f64(out, number.unwrap_or(f64::NAN))?,
        },
        Value::String(text) => encode::write_str(out, text)?,
        Value::Array(items) => {
            encode::write_array_len(out, length(items.len()))?;
            items.iter().try_for_each(|item| append(out, item))?;
        }
        Value::Object(object) => {
            if let Some(bytes) = bytes_of(object) {
                return encode::write_bin(out, &bytes);
            }
            encode::write_map_len(out, length(object.len()))?;
            for (key, value) in object {
                encode::write_str(out, key)?;
                append(out, value)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(bytes: &[u8]) -> Result<String, String> {
        read(bytes, 4096).map(|json| String::from_utf8(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_value_becomes_json() {
        let rows: [(&[u8], &str); 14] = [
            (&[0xc0], "null"),
            (&[0x93, 0xc2, 0xc3, 0x05], "[false,true,5]"),
            (&[0x91, 0xff], "[-1]"),
            (&[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "18446744073709551615"),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], "-9223372036854775808"),
            (&[0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0], "1.5"),
            (&[0xca, 0x3f, 0xc0, 0, 0], "1.5"),
            (&[0x90], "[]"),
            (&[0x80], "{}"),
            (&[0x82, 0xa1, b'a', 0x90, 0xa1, b'b', 0x80], r#"{"a":[],"b":{}}"#),
            (&[0x81, 0x05, 0xc0], r#"{"5":null}"#),
            (&[0xc4, 1, b'x'], r#"{"__type__":"bytes","__value__":"x"}"#),
            (&[0xc4, 1, 0xff], r#"{"__type__":"base64","__value__":"/w=="}"#),
            (&[0xd9, 2, 0xc3, 0xa9], "\"é\""),
        ];
        for (bytes, expected) in rows {
            assert_eq!(json(bytes).as_deref(), Ok(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn lies_about_lengths_cost_nothing() {
        let rows: [(&[u8], &str); 8] = [
            (&[0xdd, 0xff, 0xff, 0xff, 0xff], "ends too early"),
            (&[0xdf, 0xff, 0xff, 0xff, 0xff, 0xa0], "ends too early"),
            (&[0xc6, 0xff, 0xff, 0xff, 0xff, 0], "ends too early"),
            (&[0xdb, 0xff, 0xff, 0xff, 0xff, 0], "ends too early"),
            (&[], "ends too early"),
            (&[0xc0, 0xc0], "more than one value"),
            (&[0xc1], "0xc1"),
            (&[0xa1, 0xff], "not UTF-8"),
        ];
        for (bytes, reason) in rows {
            let error = json(bytes).unwrap_err();
            assert!(error.contains(reason), "{bytes:x?}: {error}");
        }
        assert!(json(&[0x91; 5000]).unwrap_err().contains("nested"));
        assert!(json(&[&[0xdc, 0x10, 0x00][..], &[0xc0; 4096]].concat()).unwrap_err().contains("more than the 4096"));
    }

    #[test]
    fn what_json_has_no_word_for_is_refused() {
        let rows: [&[u8]; 4] =
            [&[0xd4, 1, 0], &[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0], &[0x81, 0x90, 0xc0], &[0x81, 0xc4, 1, 0xff, 0xc0]];
        for bytes in rows {
            assert!(json(bytes).unwrap_err().contains("which JSON cannot say"), "{bytes:x?}");
        }
    }
}
