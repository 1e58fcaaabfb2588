//! What stands behind the `?` of a request.
//!
//! Enters: a query. Leaves: its parameters by name, and numbers of them. Refused: a number that is none, in words.

use hyper::http::request::Parts;

/// The parameters, decoded, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(request: &Parts) -> Self {
        Self::parse(request.uri.query().unwrap_or_default())
    }

    pub(super) fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The first of this name that says something.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// All of this name.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The number of this name; `Err` is what a user should read.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("{name} is no number: {text:?}"));
        self.text(name).map(number).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_what_is_empty_says_nothing() {
        let query = Query::parse("a=x%20y+z&b=&limit=12&a=2&%C3%A9=%ff");
        assert_eq!((query.text("a"), query.text("b"), query.text("c")), (Some("x y z"), None, None));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["x y z", "2"]);
        assert_eq!(query.number::<u64>("limit"), Ok(Some(12)));
        assert_eq!(query.number::<u64>("b"), Ok(None));
        assert!(query.number::<u64>("a").unwrap_err().contains("a is no number"));
        assert_eq!(query.text("é"), Some("\u{fffd}"));
    }
}
