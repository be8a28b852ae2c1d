//! A buffer on the stack, for the context of an evaluation.

use std::{fmt, io, ops::Deref};

/// Bytes on the stack, which move to the heap when they become too many.
///
/// For many short pieces it is faster than a small vector: it checks its capacity once for each piece, and does not choose
/// between two pointers.
pub(crate) struct Buffer {
    inline: [u8; Self::INLINE],
    len: usize,
    /// All bytes, if they do not fit.
    heap: Vec<u8>,
}

impl Buffer {
    /// Large enough for most contexts.
    const INLINE: usize = 512;

    pub(crate) fn new() -> Self {
        Self { inline: [0; Self::INLINE], len: 0, heap: Vec::new() }
    }

    pub(crate) fn push(&mut self, byte: u8) {
        self.put([byte], &[], []);
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.put([], bytes, []);
    }

    /// Writes bytes with others before and after them.
    #[inline]
    pub(crate) fn put<const A: usize, const B: usize>(&mut self, before: [u8; A], bytes: &[u8], after: [u8; B]) {
        let end = self.len + A + bytes.len() + B;
        match self.inline.get_mut(self.len..end) {
            Some(room) => {
                let (start, room) = room.split_at_mut(A);
                let (middle, rest) = room.split_at_mut(bytes.len());
                start.copy_from_slice(&before);
                middle.copy_from_slice(bytes);
                rest.copy_from_slice(&after);
                self.len = end;
            }
            None => self.spill(&[&before, bytes, &after]),
        }
    }

    #[cold]
    fn spill(&mut self, pieces: &[&[u8]]) {
        if self.heap.is_empty() {
            self.heap.extend_from_slice(&self.inline[..self.len]);
            // No further piece fits.
            self.len = Self::INLINE + 1;
        }
        pieces.iter().for_each(|piece| self.heap.extend_from_slice(piece));
    }

    /// Returns the last byte, to be replaced.
    pub(crate) fn last_mut(&mut self) -> Option<&mut u8> {
        if self.heap.is_empty() { self.inline[..self.len].last_mut() } else { self.heap.last_mut() }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.heap.is_empty() { &self.inline[..self.len] } else { &self.heap }
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_written_is_there_in_its_order() {
        for piece in [1, 2, 7, 255, 256, 257, 511, 512, 513, 2_000] {
            let (mut buffer, mut expected) = (Buffer::new(), Vec::new());
            for number in 0..20 {
                let bytes = vec![number; piece];
                buffer.put([b'<'], &bytes, *b">,");
                expected.extend([&b"<"[..], &bytes, b">,"].concat());
                assert_eq!(buffer[..], expected);
                if let Some(last) = buffer.last_mut() {
                    *last = b';';
                }
                buffer.push(b'.');
                buffer.extend(b"");
                *expected.last_mut().unwrap() = b';';
                expected.push(b'.');
            }
            assert_eq!(buffer[..], expected);
        }
    }
}
