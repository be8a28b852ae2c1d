//! Finds the fields of a written context, puts them in order, and limits their size.

use std::{
    cmp::{Ordering, Reverse},
    ops::Range,
};

use smallvec::SmallVec;

use crate::context::{
    canonical::{PREFIX, SUFFIX, TARGETING_KEY, string_end},
    left_out::{MAX_BYTES, Unsendable},
};

/// One field, as it is written.
#[derive(Clone, Debug)]
struct Field<'a> {
    /// As it is written, without the quotes.
    name: &'a [u8],
    /// The name in quotes, a colon, and the value.
    text: &'a [u8],
    has_value: bool,
    /// Whether the field is left out after all others if the context is too large.
    is_protected: bool,
}

impl Field<'_> {
    fn is_targeting_key(&self) -> bool {
        self.name == TARGETING_KEY.as_bytes()
    }
}

/// Compares names as they are written. Escapes are rare.
fn compare(one: &[u8], other: &[u8]) -> Ordering {
    if one.contains(&b'\\') || other.contains(&b'\\') { decoded(one).cmp(&decoded(other)) } else { one.cmp(other) }
}

/// Returns a name without escapes.
fn decoded(name: &[u8]) -> String {
    serde_json::from_slice(&[b"\"", name, b"\""].concat()).unwrap_or_default()
}

/// Splits a context into its fields.
fn split(body: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut rest = written(body);
    std::iter::from_fn(move || {
        let name_end = string_end(rest)?;
        let value = rest.get(name_end + 1..)?;
        let value_end = value_end(value);
        let (text, after) = rest.split_at(name_end + 1 + value_end);
        rest = after.get(1..).unwrap_or_default();
        let name = text.get(1..name_end - 1)?;
        Some(Field { name, text, has_value: value_end > 0, is_protected: false })
    })
}

/// Returns the position after the value at the beginning of `text`.
fn value_end(text: &[u8]) -> usize {
    let (mut position, mut depth) = (0, 0_usize);
    while let Some(byte) = text.get(position) {
        match byte {
            b',' if depth == 0 => return position,
            b'"' => {
                position += string_end(text.get(position..).unwrap_or_default()).unwrap_or(text.len());
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        position += 1;
    }
    text.len()
}

/// Returns the canonical form of a context whose fields are in any order. If several fields have the same name, the last one is
/// used.
///
/// If it is too large, the largest fields are left out, starting with fields outside `protected`, which is a range of bytes in
/// `body`.
pub(crate) fn arrange(body: &[u8], protected: &Range<usize>, mut left_out: impl FnMut(&str, Unsendable)) -> Vec<u8> {
    let mut position = PREFIX.len();
    let mut fields: SmallVec<[Field<'_>; 16]> = split(body)
        .map(|field| {
            let is_protected = protected.contains(&position);
            position += field.text.len() + 1;
            Field { is_protected, ..field }
        })
        .collect();
    // The sort is stable, so the last field with a given name stays the last.
    fields.sort_by(|a, b| {
        let keys = b.is_targeting_key().cmp(&a.is_targeting_key());
        keys.then_with(|| compare(a.name, b.name))
    });
    let mut kept: SmallVec<[Field<'_>; 16]> = SmallVec::with_capacity(fields.len());
    for field in fields {
        match kept.last_mut() {
            Some(last) if last.name == field.name => *last = field,
            _ => kept.push(field),
        }
    }
    kept.retain(|field| field.has_value);
    let bytes = |fields: &[Field<'_>]| fields.iter().map(|field| field.text.len() + 1).sum::<usize>();
    let mut excess = (PREFIX.len() + bytes(&kept) + SUFFIX.len()).saturating_sub(MAX_BYTES + 1);
    if excess > 0 {
        let mut largest: Vec<_> = kept.iter_mut().filter(|field| !field.is_targeting_key()).collect();
        // Among equally large fields, the last one comes first.
        largest.reverse();
        largest.sort_by_key(|field| (field.is_protected, Reverse(field.text.len())));
        for field in largest {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(field.text.len() + 1);
            field.has_value = false;
            left_out(&decoded(field.name), Unsendable::Size { bytes: field.text.len() });
        }
        kept.retain(|field| field.has_value);
    }
    let mut arranged = Vec::with_capacity(PREFIX.len() + bytes(&kept) + SUFFIX.len());
    arranged.extend_from_slice(PREFIX);
    for field in &kept {
        separate(&mut arranged);
        arranged.extend_from_slice(field.text);
    }
    arranged.extend_from_slice(SUFFIX);
    arranged
}

/// Writes a comma, unless no field has been written yet.
pub(crate) fn separate(body: &mut Vec<u8>) {
    if body.len() > PREFIX.len() {
        body.push(b',');
    }
}

/// Returns the fields of a context as they are written, separated by commas.
pub(crate) fn written(body: &[u8]) -> &[u8] {
    body.get(PREFIX.len()..body.len().saturating_sub(SUFFIX.len())).unwrap_or_default()
}

/// Where an attribute belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place {
    /// Before the field at this position.
    Before(usize),
    /// Another attribute has the same name.
    Taken,
    Last,
}

/// Returns where an attribute belongs among fields that are in order.
pub(crate) fn place(body: &[u8], name: &str) -> Place {
    let mut position = PREFIX.len();
    for field in split(body) {
        if !field.is_targeting_key() {
            let has_escapes = field.name.contains(&b'\\');
            match if has_escapes { name.cmp(&decoded(field.name)) } else { name.as_bytes().cmp(field.name) } {
                Ordering::Less => return Place::Before(position),
                Ordering::Equal => return Place::Taken,
                Ordering::Greater => {}
            }
        }
        position += field.text.len() + 1;
    }
    Place::Last
}

/// Moves the last field and the comma before it, which begin at `end`, to a position.
pub(crate) fn move_last(body: &mut [u8], end: usize, position: usize) {
    let added = body.len() - end;
    if let Some(moved) = body.get_mut(position..) {
        moved.rotate_right(added);
    }
    // The comma moves after the field.
    if let Some(field) = body.get_mut(position..position + added) {
        field.rotate_left(1);
    }
}

/// Returns where the name of the last attribute is, unless it has escapes. Empty if there are no attributes.
pub(crate) fn last_name(body: &[u8]) -> Option<(usize, usize)> {
    let last = split(body).last().filter(|last| !last.is_targeting_key());
    let Some(last) = last else { return Some((0, 0)) };
    let start = body.len() - SUFFIX.len() - last.text.len() + 1;
    (!last.name.contains(&b'\\')).then(|| (start, start + last.name.len()))
}

/// Returns the targeting key as it is written, and the bytes after it, if a context in its canonical form has one.
fn split_targeting_key(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let fields = written(body).strip_prefix(br#""targetingKey":"#)?;
    fields.split_at_checked(string_end(fields)?)
}

/// Returns whether a context has a targeting key.
pub(crate) fn has_targeting_key(body: &[u8]) -> bool {
    split_targeting_key(body).is_some()
}

/// Returns the attributes of a context as they are written, separated by commas.
pub(crate) fn attributes(body: &[u8]) -> &[u8] {
    match split_targeting_key(body) {
        Some((_, after)) => after.get(1..).unwrap_or_default(),
        None => written(body),
    }
}

/// Returns the names of the fields of a context.
pub(crate) fn names(body: &[u8]) -> impl Iterator<Item = String> {
    split(body).map(|field| decoded(field.name))
}

/// Returns the targeting key of a context in its canonical form.
pub(crate) fn targeting_key(body: &[u8]) -> Option<String> {
    let (key, _) = split_targeting_key(body)?;
    serde_json::from_slice(key).ok()
}
