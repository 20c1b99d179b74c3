//! What messages are made of, and how often they may be run.

use std::{collections::BTreeMap, fmt, str::FromStr};

use rtask_protocol::{Accept, ContentName, content::SerializerError, rate::Rate};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Settings, SettingsError, Text, pairs, units::listed};

/// `accept_content`: names of serialisers, or content types, and `auth` for what is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedContent(Vec<ContentName>);

/// `task_global_rate_limits`, by task name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RateLimits(Vec<(String, Text<Rate>)>);

impl Settings {
    /// What is read. With `auth` in `accept_content`, the files that `security_cert_store` names are read now.
    ///
    /// # Errors
    /// When `auth` is accepted, and for what is wrong with these files.
    pub fn accept(&self) -> Result<Accept, SettingsError> {
        let content = self.accept_content.0.iter().filter_map(|name| match name {
            ContentName::Plain(serializer) => Some(*serializer),
            ContentName::Signed => None,
        });
        Ok(Accept {
            content: content.collect(),
            signed: match self.accept_content.0.contains(&ContentName::Signed) {
                true => Some(self.certificate_store()?.into()),
                false => None,
            },
            max_body: usize::try_from(self.limits.arguments.0).unwrap_or(usize::MAX),
        })
    }

    pub fn global_rate_limits(&self) -> BTreeMap<String, Rate> {
        self.task_global_rate_limits.0.iter().map(|(task, Text(rate))| (task.clone(), *rate)).collect()
    }
}

/// JSON, as for Celery.
impl Default for AcceptedContent {
    fn default() -> Self {
        Self(vec![ContentName::default()])
    }
}

impl FromStr for AcceptedContent {
    type Err = SerializerError;

    fn from_str(text: &str) -> Result<Self, SerializerError> {
        text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for AcceptedContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ContentName::to_string).collect();
        f.write_str(&names.join(","))
    }
}

impl Serialize for AcceptedContent {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AcceptedContent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        listed(from)
    }
}

impl<'de> Deserialize<'de> for RateLimits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        pairs::deserialize(from, "a table of tasks and rates, or text such as `feed.import=10/s,feed.export=1/m`")
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use rtask_protocol::Serializer;

    use super::*;

    fn settings(text: &str) -> Settings {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn content_is_accepted_by_name_and_pickle_never() {
        let content = |text: &str| settings(text).accept().unwrap().content;
        assert!(content("").contains(Serializer::Json) && !content("").contains(Serializer::Yaml));
        let both = content("accept_content = ['application/x-yaml', 'msgpack']");
        assert!(
            both.contains(Serializer::Yaml) && both.contains(Serializer::Msgpack) && !both.contains(Serializer::Json)
        );
        for (text, reason) in
            [("accept_content = ['pickle']", "pickle"), ("accept_content = ''", "json, yaml or msgpack")]
        {
            let error = toml::from_str::<Settings>(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn rates_are_written_as_celery_writes_them() {
        let settings = settings("task_default_rate_limit = 2\n[task_global_rate_limits]\n'a.b' = '10/m'");
        let default = settings.task_default_rate_limit.map(|Text(rate)| rate.to_string());
        assert_eq!(default.as_deref(), Some("2/s"));
        assert_eq!(settings.global_rate_limits()["a.b"].to_string(), "10/m");
        assert!(toml::from_str::<Settings>("task_default_rate_limit = 'fast'").is_err());
    }
}
