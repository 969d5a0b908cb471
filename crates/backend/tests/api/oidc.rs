//! Tokens of an identity provider: a real HTTP server with generated keys, and everything that can be wrong with a token.

use crate::app::{Reply, TestApp, send};
use actix_web::{App, HttpResponse, HttpServer, dev::ServerHandle, web};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Utc;
use insta::assert_snapshot;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A key pair of the provider.
struct Pair {
    id: &'static str,
    algorithm: Algorithm,
    private: EncodingKey,
    jwk: Value,
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Pair {
    fn ec(id: &'static str) -> Self {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": id, "x": b64(x), "y": b64(y)});
        Self { id, algorithm: Algorithm::ES256, private: EncodingKey::from_ec_der(der.as_ref()), jwk }
    }

    fn ed(id: &'static str) -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap();
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": b64(pair.public_key().as_ref())});
        Self { id, algorithm: Algorithm::EdDSA, private: EncodingKey::from_ed_der(der.as_ref()), jwk }
    }

    fn rsa(id: &'static str, algorithm: Algorithm) -> Self {
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
        let (n, e) = (b64(&rsa.n().to_vec()), b64(&rsa.e().to_vec()));
        let jwk = json!({"kty": "RSA", "kid": id, "n": n, "e": e});
        Self { id, algorithm, private: EncodingKey::from_rsa_der(&rsa.private_key_to_der().unwrap()), jwk }
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

/// What the provider serves.
#[derive(Default)]
struct Served {
    url: Mutex<String>,
    keys: Mutex<Value>,
    asked: AtomicUsize,
}

struct Provider {
    served: Arc<Served>,
    server: ServerHandle,
}

impl Provider {
    async fn new(keys: &[&Pair]) -> Self {
        let served = Arc::new(Served::default());
        let shared = web::Data::from(Arc::clone(&served));
        let discovery = async |served: web::Data<Served>| {
            let url = served.url.lock().unwrap().clone();
            HttpResponse::Ok().json(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
        };
        let key_set = async |served: web::Data<Served>| {
            served.asked.fetch_add(1, Ordering::SeqCst);
            HttpResponse::Ok().json(served.keys.lock().unwrap().clone())
        };
        let app = move || {
            App::new()
                .app_data(shared.clone())
                .route("/.well-known/openid-configuration", web::get().to(discovery))
                .route("/keys", web::get().to(key_set))
        };
        let server = HttpServer::new(app).workers(1).bind(("127.0.0.1", 0)).unwrap();
        *served.url.lock().unwrap() = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let this = Self { served, server: server.handle() };
        tokio::spawn(server);
        this.publish(keys);
        this
    }

    fn publish(&self, keys: &[&Pair]) {
        // One of a kind that nobody knows must not hide the others.
        let mut list: Vec<Value> = keys.iter().map(|k| k.jwk.clone()).collect();
        list.push(json!({"kty": "EC", "crv": "secp256k1", "kid": "odd", "x": "AA", "y": "AA"}));
        *self.served.keys.lock().unwrap() = json!({"keys": list});
    }

    fn url(&self) -> String {
        self.served.url.lock().unwrap().clone()
    }

    fn asked(&self) -> usize {
        self.served.asked.load(Ordering::SeqCst)
    }

    /// Claims of a good token.
    fn claims(&self, changes: Value) -> Value {
        let now = Utc::now().timestamp();
        let mut claims = json!({"iss": self.url(), "aud": ["other", "hone"], "sub": "user-1", "exp": now + 300,
            "nbf": now - 1, "preferred_username": "grace", "email": "grace@example.org"});
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims
    }

    /// A backend that trusts this provider.
    async fn backend(&self, app: &TestApp, more: &[(&str, &str)]) -> TestApp {
        let url = self.url();
        let settings = [("OIDC_ISSUER", url.as_str()), ("OIDC_AUDIENCE", "hone"), ("OIDC_REFRESH_SECONDS", "1")];
        app.sibling(&[&settings, more].concat()).await
    }
}

async fn me(app: &TestApp, token: &str) -> Reply {
    send(app.anonymous(Method::GET, "/api/me").bearer_auth(token)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_of_every_kind_signs_its_user_in() {
    let keys = [Pair::ec("ec"), Pair::ed("ed"), Pair::rsa("rsa", Algorithm::RS256), Pair::rsa("pss", Algorithm::PS256)];
    let provider = Provider::new(&keys.iter().collect::<Vec<_>>()).await;
    let app = TestApp::new().await;
    let backend = provider.backend(&app, &[("OIDC_ADMIN_CLAIM", "realm.groups=hone-admins")]).await;
    let mut ids = Vec::new();
    for key in &keys {
        let user = me(&backend, &key.sign(&provider.claims(json!({})))).await.expect(200);
        assert_eq!((&user["name"], &user["email"]), (&json!("grace"), &json!("grace@example.org")));
        assert_eq!(
            (&user["role"], &user["scopes"], &user["key_prefix"]),
            (&json!("user"), &json!(["*"]), &json!(null))
        );
        ids.push(user["id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "one subject is one user");
    assert_eq!(provider.asked(), 1, "the keys are cached");

    // Another subject of the same name is another user, and no token becomes the user of the bootstrap key.
    let sign = |changes: Value| keys[0].sign(&provider.claims(changes));
    let other = me(&backend, &sign(json!({"sub": "user-2"}))).await.expect(200);
    assert!(other["id"] != ids[0] && other["name"].as_str().unwrap().starts_with("grace-"));
    let local = me(&backend, &sign(json!({"sub": "user-3", "preferred_username": "local"}))).await.expect(200);
    assert!(local["id"] != json!(app.user) && local["name"].as_str().unwrap().starts_with("local-"));

    // Scopes and role are what the token says.
    let narrow = sign(json!({"scope": "openid jobs:read profile"}));
    assert_eq!(me(&backend, &narrow).await.expect(200)["scopes"], json!(["jobs:read"]));
    let list = async |token: &str, path: &str| {
        send(backend.anonymous(Method::GET, path).bearer_auth(token)).await.status.as_u16()
    };
    assert_eq!((list(&narrow, "/training/jobs").await, list(&narrow, "/datasets").await), (200, 403));
    let listed = sign(json!({"scp": ["datasets:read"]}));
    assert_eq!((list(&listed, "/training/jobs").await, list(&listed, "/datasets").await), (403, 200));
    let admin = sign(json!({"realm": {"groups": ["staff", "hone-admins"]}}));
    assert_eq!((list(&admin, "/api/users").await, list(&sign(json!({})), "/api/users").await), (200, 403));
    // The token works where keys do, and what it does is in the log.
    send(backend.anonymous(Method::GET, "/v1/models").bearer_auth(sign(json!({})))).await.expect(200);
    let made = send(
        backend
            .anonymous(Method::POST, "/api/training/packages")
            .bearer_auth(sign(json!({})))
            .json(&json!({"name": "hers"})),
    )
    .await;
    made.expect(201);
    let entry = &app.get("/api/audit?action=create_package").await.expect(200)["items"][0];
    assert_eq!((&entry["actor_id"], &entry["key_prefix"]), (&ids[0], &json!(null)));
    assert_eq!(app.get("/api/training/packages").await.expect(200)["items"], json!([]), "another tenant's");

    // A deleted user stays out, whatever the provider says.
    app.delete(&format!("/api/users/{}", ids[0].as_str().unwrap())).await.expect(204);
    assert_snapshot!(me(&backend, &sign(json!({}))).await.problem(), @"401 UNAUTHORIZED: no valid token: its user was deleted here");
    // Without the setting a token is just a wrong key.
    me(&app, &sign(json!({"sub": "user-2"}))).await.expect(401);
    let log = backend.log();
    assert!(!log.contains("eyJ"), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_refused_with_the_reason() {
    let (ec, rsa, stranger) = (Pair::ec("ec"), Pair::rsa("rsa", Algorithm::RS256), Pair::ec("ec"));
    let provider = Provider::new(&[&ec, &rsa]).await;
    let app = TestApp::new().await;
    let backend = provider.backend(&app, &[]).await;
    let refused = async |token: &str| me(&backend, token).await.problem();
    let sign = |changes: Value| ec.sign(&provider.claims(changes));
    let now = Utc::now().timestamp();
    assert_snapshot!(refused(&sign(json!({"exp": now - 60}))).await, @"401 UNAUTHORIZED: no valid token: it has expired");
    me(&backend, &sign(json!({"exp": now - 10}))).await.expect(200);
    assert_snapshot!(refused(&sign(json!({"nbf": now + 60}))).await, @"401 UNAUTHORIZED: no valid token: it is not valid yet");
    assert_snapshot!(refused(&sign(json!({"aud": "other"}))).await, @"401 UNAUTHORIZED: no valid token: it is for another audience");
    assert_snapshot!(refused(&sign(json!({"iss": "https://evil.example.org"}))).await, @"401 UNAUTHORIZED: no valid token: it is of another issuer");
    for claim in ["exp", "aud", "iss"] {
        let told = refused(&sign(json!({claim: null}))).await;
        assert_eq!(told, "401 UNAUTHORIZED: no valid token: it lacks one of exp, iss, aud, sub", "{claim}");
    }
    refused(&sign(json!({"sub": null}))).await;
    assert_snapshot!(refused(&sign(json!({"sub": ""}))).await, @"401 UNAUTHORIZED: no valid token: its subject is empty or too long");
    assert_snapshot!(refused(&stranger.sign(&provider.claims(json!({})))).await, @"401 UNAUTHORIZED: no valid token: its signature is wrong");

    // The public key as the secret of an HMAC, and no signature at all.
    let claims = provider.claims(json!({}));
    for secret in [rsa.jwk["n"].as_str().unwrap(), ec.jwk["x"].as_str().unwrap(), ""] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("rsa".to_owned());
        let key = EncodingKey::from_secret(secret.as_bytes());
        let told = refused(&jsonwebtoken::encode(&header, &claims, &key).unwrap()).await;
        assert!(
            told.ends_with("it is signed in a way that is not accepted; use RS256, PS256, ES256 or EdDSA"),
            "{told}"
        );
    }
    let unsigned = format!("{}.{}.", b64(br#"{"alg":"none","kid":"ec"}"#), b64(claims.to_string().as_bytes()));
    assert_snapshot!(refused(&unsigned).await, @"401 UNAUTHORIZED: no valid token: it is no JWT, or signed in a way that is not accepted");
    // A key of one kind named by a token of another.
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("rsa".to_owned());
    let mixed = jsonwebtoken::encode(&header, &claims, &ec.private).unwrap();
    assert_snapshot!(refused(&mixed).await, @"401 UNAUTHORIZED: no valid token: its algorithm is not the one of its key");
    header.kid = None;
    let nameless = jsonwebtoken::encode(&header, &claims, &ec.private).unwrap();
    assert_snapshot!(refused(&nameless).await, @"401 UNAUTHORIZED: no valid token: it does not name its key (`kid`)");
    let good = sign(json!({}));
    let (head, signature) = good.rsplit_once('.').unwrap();
    let other = sign(json!({"sub": "user-2"}));
    let forged = format!("{}.{signature}", other.rsplit_once('.').unwrap().0);
    assert!(head.starts_with("eyJ"));
    assert_snapshot!(refused(&forged).await, @"401 UNAUTHORIZED: no valid token: its signature is wrong");
    assert_eq!(app.get("/api/users").await.expect(200)["items"].as_array().unwrap().len(), 2, "one good user");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_and_known_ones_outlive_the_provider() {
    let (old, new, never) = (Pair::ec("old"), Pair::ec("new"), Pair::ec("never"));
    let provider = Provider::new(&[&old]).await;
    let app = TestApp::new().await;
    let backend = provider.backend(&app, &[]).await;
    let with = async |pair: &Pair| me(&backend, &pair.sign(&provider.claims(json!({})))).await;
    with(&old).await.expect(200);

    provider.publish(&[&new]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    with(&new).await.expect(200);
    assert_eq!(provider.asked(), 2);
    assert_snapshot!(with(&old).await.problem(), @"401 UNAUTHORIZED: no valid token: its key is not one of the identity provider's");

    // Unknown keys make us ask at most once per second, however many there are.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = provider.asked();
    for _ in 0..20 {
        with(&never).await.expect(401);
    }
    let asked = provider.asked() - before;
    assert!((1..=3).contains(&asked), "asked {asked} times");

    provider.server.stop(false).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_snapshot!(with(&never).await.problem(), @"503 UNAVAILABLE: the identity provider cannot be asked for its keys; try again in a moment");
    with(&new).await.expect(200);
    app.get("/api/me").await.expect(200);
    // A backend that never saw the provider says so, and keys of our own work.
    let late = provider.backend(&app, &[]).await;
    me(&late, &new.sign(&provider.claims(json!({})))).await.expect(503);
    late.get("/api/me").await.expect(200);
}
