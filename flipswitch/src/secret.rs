//! The secret of a provider, and the keys that are derived from it.

use std::{fmt, sync::OnceLock};

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Length of an authentication code, in bytes. A truncation of HMAC-SHA-256 to 128 bits is enough (RFC 2104, section 5).
const MAC_BYTES: usize = 16;

/// A secret. Each purpose has its own key, derived by HKDF-SHA-256 (RFC 5869).
#[derive(Clone)]
pub(crate) struct Secret(Hkdf<Sha256>);

impl Secret {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(Hkdf::new(None, bytes))
    }

    /// Returns a random secret that is the same throughout the process.
    pub(crate) fn of_this_process() -> Self {
        static BYTES: OnceLock<[u8; 32]> = OnceLock::new();
        let bytes = BYTES.get_or_init(|| {
            let mut bytes = [0; 32];
            if let Err(error) = getrandom::fill(&mut bytes) {
                tracing::error!(
                    target: "flipswitch", %error, "no random numbers are available; the secret of this process can be guessed"
                );
            }
            bytes
        });
        Self::new(bytes)
    }

    fn mac_key(&self, label: &[u8]) -> MacKey {
        // One block of SHA-256. HMAC pads a key of 32 bytes with zeros.
        let mut key = [0; 64];
        key[..32].copy_from_slice(&self.key(label));
        MacKey(Hmac::new(&key.into()))
    }

    fn key(&self, label: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        // Fails only for lengths beyond 8 160 bytes.
        let _ = self.0.expand(label, &mut key);
        key
    }
}

/// The secrets that the keys of a provider are derived from.
pub(crate) struct Secrets {
    pub(crate) current: Secret,
    pub(crate) before: Option<Secret>,
    /// Whether the current secret is so short that it can be derived from a code by trial and error.
    pub(crate) is_guessable: bool,
}

impl Secrets {
    pub(crate) fn of_this_process() -> Self {
        Self { current: Secret::of_this_process(), before: None, is_guessable: false }
    }

    /// Returns the secret for codes that are visible to others.
    pub(crate) fn for_published_codes(&self) -> Secret {
        if self.is_guessable { Secret::of_this_process() } else { self.current.clone() }
    }
}

/// The keys for visitor cookies: the key that signs, and an earlier key that is still accepted.
#[derive(Clone)]
pub(crate) struct VisitorKeys {
    current: MacKey,
    before: Option<MacKey>,
}

impl VisitorKeys {
    pub(crate) fn new(secret: &Secret, before: Option<&Secret>) -> Self {
        let key = |secret: &Secret| secret.mac_key(b"flipswitch visitor cookie");
        Self { current: key(secret), before: before.map(key) }
    }

    /// Returns the authentication code of a visitor's number.
    pub(crate) fn sign(&self, digits: &[u8]) -> [u8; MAC_BYTES] {
        self.current.sign(digits)
    }

    /// Returns whether a visitor's number was signed with one of the keys.
    pub(crate) fn verifies(&self, digits: &[u8], code: [u8; MAC_BYTES]) -> bool {
        [Some(&self.current), self.before.as_ref()].into_iter().flatten().any(|key| key.verifies(digits, code))
    }
}

/// The keys for what browsers receive about flags.
#[derive(Clone)]
pub(crate) struct BrowserKeys {
    tags: MacKey,
    users: MacKey,
}

impl BrowserKeys {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self { tags: secret.mac_key(b"flipswitch browser tag"), users: secret.mac_key(b"flipswitch browser user") }
    }

    /// Returns the code of a response for a context.
    pub(crate) fn tag(&self, context: &[u8], body: &[u8]) -> [u8; MAC_BYTES] {
        let length = (context.len() as u64).to_be_bytes();
        self.tags.sign(&[&length, context, body].concat())
    }

    /// Returns the code of a user.
    pub(crate) fn user(&self, user: &[u8]) -> [u8; MAC_BYTES] {
        self.users.sign(user)
    }
}

/// The key for context ids in telemetry.
#[derive(Clone)]
pub(crate) struct TelemetryKey(MacKey);

impl TelemetryKey {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self(secret.mac_key(b"flipswitch evaluation context"))
    }

    /// Returns the code of a targeting key, in hexadecimal digits.
    pub(crate) fn code(&self, targeting_key: &str) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0.sign(targeting_key.as_bytes())))
    }
}

/// Omits the key.
impl fmt::Debug for TelemetryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TelemetryKey")
    }
}

/// The keys for the data in a store outside the process.
#[derive(Clone)]
pub(crate) struct StoreKeys {
    names: MacKey,
    cipher: XChaCha20Poly1305,
}

/// Length of the random number that precedes each ciphertext, in bytes. Long enough to be chosen at random.
const NONCE_BYTES: usize = 24;

impl StoreKeys {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self {
            names: secret.mac_key(b"flipswitch store name"),
            cipher: XChaCha20Poly1305::new(&secret.key(b"flipswitch store cipher").into()),
        }
    }

    /// Returns the code of several byte strings in hexadecimal digits.
    pub(crate) fn name(&self, texts: &[&[u8]]) -> String {
        // Includes their lengths, so that no two lists have the same code.
        let parts = texts.iter().flat_map(|text| [&(text.len() as u64).to_be_bytes()[..], text].concat());
        format!("{:032x}", u128::from_be_bytes(self.names.sign(&parts.collect::<Vec<_>>())))
    }

    /// Encrypts bytes. `associated` is authenticated together with them. Returns `None` if no random numbers are available.
    pub(crate) fn seal(&self, text: &[u8], associated: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).ok()?;
        let payload = Payload { msg: text, aad: associated };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    /// Decrypts bytes. Returns `None` if the bytes were not encrypted with this key and this `associated`.
    pub(crate) fn open(&self, sealed: &[u8], associated: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: associated }).ok()
    }
}

/// A key that authenticates short byte strings.
#[derive(Clone)]
struct MacKey(Hmac<Sha256>);

impl MacKey {
    /// Returns the authentication code of bytes.
    fn sign(&self, text: &[u8]) -> [u8; MAC_BYTES] {
        let full = self.0.clone().chain_update(text).finalize().into_bytes();
        let mut code = [0; MAC_BYTES];
        code.copy_from_slice(&full[..MAC_BYTES]);
        code
    }

    /// Returns whether this is the authentication code of the bytes. Takes the same time for all codes.
    fn verifies(&self, text: &[u8], code: [u8; MAC_BYTES]) -> bool {
        self.0.clone().chain_update(text).verify_truncated_left(&code).is_ok()
    }
}

/// Omits the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &[u8], before: Option<&[u8]>) -> VisitorKeys {
        VisitorKeys::new(&Secret::new(secret), before.map(Secret::new).as_ref())
    }

    #[test]
    fn a_code_is_valid_only_for_its_text_and_secret() {
        let one = keys(b"one secret of this test", None);
        let code = one.sign(b"text");
        assert!(one.verifies(b"text", code));
        assert!(!one.verifies(b"texts", code) && !one.verifies(b"", code));
        for bit in 0..128 {
            let mut other = code;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!one.verifies(b"text", other), "{bit}");
        }
        assert!(!keys(b"another secret of this test", None).verifies(b"text", code));
        let later = keys(b"another secret of this test", Some(b"one secret of this test"));
        assert!(later.verifies(b"text", code) && later.sign(b"text") != code);
    }

    #[test]
    fn a_process_has_one_random_secret() {
        let sign = || VisitorKeys::new(&Secret::of_this_process(), None).sign(b"x");
        assert_eq!(sign(), sign());
        assert_ne!(sign(), keys(&[0; 32], None).sign(b"x"));
    }

    /// Computed with Python's `hmac` and `hashlib`. Cookies must stay valid across releases.
    #[test]
    fn codes_do_not_change() {
        let code = keys(b"0123456789abcdef", None).sign(b"00000000000000000000000000000007");
        assert_eq!(format!("{:032x}", u128::from_be_bytes(code)), "d911d38550b6546f2cbfe9158ecb5de0");
    }
}
