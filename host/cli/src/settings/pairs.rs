//! Settings whose keys are the user's own: a table, or text such as `a=1,b=2`.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error, IntoDeserializer, MapAccess, Visitor},
};

/// The pairs in the order in which they are written.
///
/// # Errors
/// For what is not as `expected`.
pub fn deserialize<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
    expected: &'static str,
) -> Result<Vec<(String, T)>, D::Error> {
    from.deserialize_any(Pairs(expected, PhantomData))
}

struct Pairs<T>(&'static str, PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for Pairs<T> {
    type Value = Vec<(String, T)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (key, value) = pair
                    .split_once('=')
                    .ok_or_else(|| E::custom(format_args!("`{pair}` has no `=`; expected {}", self.0)))?;
                Ok((key.trim().to_owned(), T::deserialize(value.trim().into_deserializer())?))
            })
            .collect()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = table.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}
