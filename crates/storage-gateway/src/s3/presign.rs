//! Presigned URLs: AWS Signature Version 4 in the query string.
//!
//! rusoto can presign too, but never covers `content-length`; here a part's URL accepts exactly the bytes the
//! session announced, so that a size limit holds although the bytes never pass the gateway.

use super::S3Access;
use crate::store::{Place, Presign};
use chrono::{DateTime, Utc};
use ring::hmac;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use std::{fmt::Write, time::Duration};

pub(super) fn url(
    access: &S3Access,
    at: &Place,
    what: &Presign<'_>,
    expires_in: Duration,
    now: DateTime<Utc>,
) -> String {
    let stamp = now.format("%Y%m%dT%H%M%SZ").to_string();
    let day = now.format("%Y%m%d").to_string();
    let scope = format!("{day}/{}/s3/aws4_request", access.region);
    let host = access.public_endpoint.authority();
    let (method, length) = match what {
        Presign::Get => ("GET", None),
        Presign::Put => ("PUT", None),
        Presign::UploadPart { size, .. } => ("PUT", Some(*size)),
    };
    let (headers, signed) = match length {
        Some(length) => (format!("content-length:{length}\nhost:{host}\n"), "content-length;host"),
        None => (format!("host:{host}\n"), "host"),
    };
    let mut query = vec![
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
        ("X-Amz-Credential", format!("{}/{scope}", access.access_key)),
        ("X-Amz-Date", stamp.clone()),
        ("X-Amz-Expires", expires_in.as_secs().to_string()),
        ("X-Amz-SignedHeaders", signed.to_owned()),
    ];
    if let Presign::UploadPart { upload_id, number, .. } = what {
        query.push(("partNumber", number.to_string()));
        query.push(("uploadId", (*upload_id).to_owned()));
    }
    // The names above are in byte order, as the canonical form wants them.
    let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", encode(value, b""))).collect();
    let query = query.join("&");
    let path = format!("/{}/{}", at.bucket, encode(&at.key, b"/"));
    let request = format!("{method}\n{path}\n{query}\n{headers}\n{signed}\nUNSIGNED-PAYLOAD");
    let digest = hex::encode(Sha256::digest(request.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}");
    let signature = hex::encode(sign(access, &day, &text));
    format!("{}{path}?{query}&X-Amz-Signature={signature}", access.public_endpoint)
}

fn sign(access: &S3Access, day: &str, text: &str) -> hmac::Tag {
    let secret = format!("AWS4{}", access.secret_key.expose_secret());
    let steps = [day, access.region.as_str(), "s3", "aws4_request"];
    let key = steps.iter().fold(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), |key, step| {
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, step.as_bytes()).as_ref())
    });
    hmac::sign(&key, text.as_bytes())
}

/// Percent-encodes everything but unreserved characters and `keep`.
fn encode(text: &str, keep: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    /// Key and time are those of "Authenticating Requests: Using Query Parameters" in Amazon's S3 reference.
    #[test]
    fn a_presigned_get_has_the_parts_the_reference_names() {
        let access = S3Access {
            endpoint: "https://s3.amazonaws.com".parse().unwrap(),
            public_endpoint: "https://examplebucket.s3.amazonaws.com".parse().unwrap(),
            region: "us-east-1".into(),
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            copy_limit: 1,
        };
        let at = Place { bucket: "b".into(), key: "a b/+ü".into() };
        let now = Utc.with_ymd_and_hms(2013, 5, 24, 0, 0, 0).unwrap();
        let text = url(&access, &at, &Presign::Get, Duration::from_secs(86400), now);
        let expected = "https://examplebucket.s3.amazonaws.com/b/a%20b/%2B%C3%BC?X-Amz-Algorithm=AWS4-HMAC-SHA256\
            &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
            &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=";
        assert!(text.starts_with(expected), "{text}");
    }

    /// The string to sign and the signature are that example's.
    #[test]
    fn the_signature_is_the_one_the_reference_gives() {
        let access = S3Access {
            endpoint: "https://s3.amazonaws.com".parse().unwrap(),
            public_endpoint: "https://s3.amazonaws.com".parse().unwrap(),
            region: "us-east-1".into(),
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            copy_limit: 1,
        };
        let text = "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n\
            3bfa292879f6447bbcda7001decf97f4a54dc650c8942174ae0a9121cf58ad04";
        assert_eq!(
            hex::encode(sign(&access, "20130524", text)),
            "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }
}
