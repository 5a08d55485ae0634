//! Lists of many pages: the next page is asked for as soon as the one before is here, and that one is parsed meanwhile.
//!
//! Who reads a list holds up its task: of what is not taken yet at most two pages are parsed, and one more is on its way.
//! Who drops it ends the task.

use std::fmt;

use futures::future::{BoxFuture, FutureExt as _, ready};
use saasodoo_core::Result;
use serde::Deserializer as _;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, MapAccess, Visitor};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::Instrument as _;

use crate::error::unexpected;
use crate::views::{Page, PageMeta};
use crate::wire::{Kind, PAGE, Wire, is_expired, page_of};

/// An answer of fewer bytes is parsed at once: handing it to another thread would take longer.
const SMALL: usize = 64 << 10;

/// A page that is being parsed.
type Parsing<T> = BoxFuture<'static, Result<Page<T>>>;

/// The pages of a list, in order.
pub(crate) struct Pages<T> {
    pages: mpsc::Receiver<Result<Parsing<T>>>,
    task: JoinHandle<()>,
    begun: bool,
}

impl<T> Pages<T> {
    /// What the next page has; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<T>>> {
        match self.pages.recv().await {
            Some(page) => {
                let page = page?.await?;
                self.begun = true;
                Ok(Some(page.items))
            }
            // A list that ends early would read as a shorter one.
            None => match (&mut self.task).await {
                Ok(()) => Ok(None),
                Err(error) => Err(unexpected(format!("the list ended early: {error}"))),
            },
        }
    }

    /// The server has forgotten where the list was: it can be begun anew.
    pub(crate) fn is_lost(&self, error: &saasodoo_core::Error) -> bool {
        self.begun && is_expired(error)
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    /// Begins to read all objects that the selector fits.
    pub(crate) fn pages<T: DeserializeOwned + Send + 'static>(&self, kind: &Kind, selector: &str) -> Pages<T> {
        let (sender, pages) = mpsc::channel(1);
        let (wire, kind, selector) = (self.clone(), *kind, selector.to_owned());
        let task = tokio::spawn(async move { wire.read_pages(kind, &selector, &sender).await }.in_current_span());
        Pages {
            pages,
            task,
            begun: false,
        }
    }

    async fn read_pages<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: Kind,
        selector: &str,
        sender: &mpsc::Sender<Result<Parsing<T>>>,
    ) {
        let mut token = None;
        loop {
            let answer = self.page_answer(&kind, selector, PAGE, token.as_deref()).await;
            let page = match answer {
                Ok(answer) => {
                    token = next_token(&answer);
                    Ok(parse(kind, answer))
                }
                Err(error) => {
                    token = None;
                    Err(error)
                }
            };
            // Nobody reads on.
            if sender.send(page).await.is_err() || token.is_none() {
                return;
            }
        }
    }

    /// Reads all objects that the selector fits. A list that the server has forgotten starts over.
    pub(crate) async fn list<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: &Kind,
        selector: &str,
    ) -> Result<Vec<T>> {
        let mut restarts = 0;
        'again: loop {
            let mut items = Vec::new();
            let mut pages = self.pages(kind, selector);
            loop {
                match pages.next().await {
                    Ok(Some(page)) => items.extend(page),
                    Ok(None) => return Ok(items),
                    Err(error) if restarts < 2 && pages.is_lost(&error) => {
                        restarts += 1;
                        continue 'again;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn parse<T: DeserializeOwned + Send + 'static>(kind: Kind, answer: Vec<u8>) -> Parsing<T> {
    if answer.len() < SMALL {
        return ready(page_of(&kind, &answer)).boxed();
    }
    let parsing = spawn_blocking(move || page_of(&kind, &answer));
    async move {
        let parsed = parsing.await;
        parsed.unwrap_or_else(|error| Err(unexpected(format!("the list was not parsed: {error}"))))
    }
    .boxed()
}

/// Where the list goes on. The server writes a list's metadata before its items, and no more than that is looked at; of
/// another order all is. What is no list has no token: that it is none is found when it is parsed.
fn next_token(answer: &[u8]) -> Option<String> {
    struct Head<'a>(&'a mut Option<PageMeta>);

    impl<'de> Visitor<'de> for Head<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                if key == "metadata" {
                    *self.0 = map.next_value()?;
                    return Err(A::Error::custom("the rest is not looked at"));
                }
                map.next_value::<IgnoredAny>()?;
            }
            Ok(())
        }
    }

    let mut metadata = None;
    // The error is how the parser is stopped.
    drop(serde_json::Deserializer::from_slice(answer).deserialize_map(Head(&mut metadata)));
    metadata?.continue_token.filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_before_the_items_and_after_them() {
        for (answer, token) in [
            // The items are not looked at: they are not even JSON.
            (
                r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"a"},"items":[{"#,
                Some("a"),
            ),
            (
                r#"{"items":[{"metadata":{"continue":"b"}}],"metadata":{"continue":"c"}}"#,
                Some("c"),
            ),
            (r#"{"metadata":{"resourceVersion":"7","continue":""},"items":[]}"#, None),
            (r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#, None),
            (r#"{"metadata":null,"items":[]}"#, None),
            (r#"{"items":[]}"#, None),
            ("<html>", None),
            ("[]", None),
        ] {
            assert_eq!(next_token(answer.as_bytes()).as_deref(), token, "{answer}");
        }
    }
}
