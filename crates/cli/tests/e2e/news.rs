//! Notifications and webhooks by command, with a receiver that verifies what it gets.

use crate::harness::{Hone, wait};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

/// Takes messages, and answers them as it is told.
struct Receiver {
    url: String,
    /// Status line of the replies.
    answer: Arc<Mutex<&'static str>>,
    /// Headers and body of what came.
    got: Arc<Mutex<Vec<(reqwest::header::HeaderMap, String)>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://localhost:{}/hook", listener.local_addr().unwrap().port());
        let me = Self { url, answer: Arc::new(Mutex::new("204 No Content")), got: Arc::default() };
        let (answer, got) = (Arc::clone(&me.answer), Arc::clone(&me.got));
        // Ends with the process.
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = BufReader::new(socket.unwrap());
                let mut headers = reqwest::header::HeaderMap::new();
                for line in socket.by_ref().lines().map(Result::unwrap).skip(1).take_while(|l| !l.is_empty()) {
                    let (name, value) = line.split_once(": ").unwrap();
                    let name: reqwest::header::HeaderName = name.to_ascii_lowercase().parse().unwrap();
                    headers.insert(name, value.parse().unwrap());
                }
                let length = headers["content-length"].to_str().unwrap().parse().unwrap();
                let mut body = String::new();
                socket.by_ref().take(length).read_to_string(&mut body).unwrap();
                got.lock().unwrap().push((headers, body));
                let status = *answer.lock().unwrap();
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                socket.get_mut().write_all(reply.as_bytes()).unwrap();
            }
        });
        me
    }

    /// Whether a message of this type has come that `secret` verifies.
    fn has(&self, kind: &str, secret: &str) -> bool {
        let webhook = standardwebhooks::Webhook::new(secret).unwrap();
        let got = self.got.lock().unwrap();
        got.iter().any(|(headers, body)| {
            body.contains(&format!("\"{kind}\"")) && webhook.verify(body.as_bytes(), headers).is_ok()
        })
    }
}

#[test]
fn news_is_followed_also_across_a_restart() {
    let mut hone = Hone::started();
    let wrong = hone.path("wrong.jsonl");
    fs::write(&wrong, "{\"messages\": []}\n").unwrap();
    let wrong = wrong.to_str().unwrap().to_owned();
    let upload = |hone: &Hone, name: &str| hone.fails(&["datasets", "upload", &wrong, "--name", name]);
    upload(&hone, "first");
    let log = hone.path("follow.jsonl");
    let out = fs::File::create(&log).unwrap();
    let mut follow = hone.command(&["--json", "notifications", "ls", "--follow"]).stdout(out).spawn().unwrap();
    let names = || -> Vec<String> {
        let text = fs::read_to_string(&log).unwrap();
        let lines = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        lines.map(|n| n["data"]["name"].as_str().unwrap().to_owned()).collect()
    };
    wait("what there was", || names() == ["first"]);
    upload(&hone, "second");
    wait("what came", || names() == ["first", "second"]);
    hone.stop();
    hone.up();
    upload(&hone, "third");
    wait("what came after a restart", || names().len() >= 3);
    assert_eq!(names(), ["first", "second", "third"], "each once, in order");
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn news_is_listed_read_and_sent_to_webhooks() {
    let hone = Hone::started();
    let receiver = Receiver::start();
    assert!(hone.ok(&["webhooks", "ls"]).contains("no webhooks"));
    assert!(hone.ok(&["notifications", "ls"]).contains("no notifications yet"));

    let create = ["webhooks", "create", &receiver.url, "--event", "dataset.invalid", "--description", "tests"];
    let out = hone.run(&create);
    let secret = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(secret.starts_with("whsec_") && !secret.contains('\n'), "only the secret is on standard output: {secret}");
    assert!(told.contains("every notification of dataset.invalid") && told.contains("shown only now"), "{told}");
    let text = hone.ok(&["webhooks", "ls"]);
    assert!(text.contains(&receiver.url) && text.contains("good") && !text.contains(&secret), "{text}");
    let text = hone.ok(&["webhooks", "test", &receiver.url]);
    assert!(text.contains("took the message and answered 204"), "{text}");
    assert!(receiver.has("webhook.test", &secret));

    // News reaches the receiver and the list.
    let wrong = hone.path("wrong.jsonl");
    fs::write(&wrong, "{\"messages\": []}\n").unwrap();
    hone.fails(&["datasets", "upload", wrong.to_str().unwrap(), "--name", "wrong"]);
    wait("the message", || receiver.has("dataset.invalid", &secret));
    let id = hone.json(&["webhooks", "ls"])[0]["id"].as_str().unwrap().to_owned();
    wait("the outcome", || hone.json(&["webhooks", "deliveries", &id])[0]["status"] == "delivered");
    let text = hone.ok(&["webhooks", "deliveries", &id[..20]]);
    assert!(text.contains("dataset.invalid") && text.contains("webhook.test") && text.contains("204"), "{text}");
    let text = hone.ok(&["notifications", "ls", "--unread"]);
    let first: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(text.contains("wrong") && text.contains("error"), "{text}");
    let text = hone.ok(&["notifications", "read", first[0]]);
    assert!(text.starts_with("read: "), "{text}");
    assert!(hone.ok(&["notifications", "ls", "--unread"]).contains("nothing unread"));
    assert!(hone.json(&["notifications", "ls"])[0]["read_at"].is_string());
    let (code, message) = hone.fails(&["notifications", "read", "ffff"]);
    assert_eq!((code, message.contains("no notification has an id")), (3, true), "{message}");
    assert_eq!(hone.fails(&["notifications", "read"]).0, 2);
    hone.fails(&["datasets", "upload", wrong.to_str().unwrap(), "--name", "wrong"]);
    assert_eq!(hone.json(&["notifications", "read", "--all"])["unread"], 0);
    wait("everything to be delivered", || {
        hone.json(&["webhooks", "deliveries", &id, "--status", "pending"]).as_array().unwrap().is_empty()
    });

    // A receiver that refuses is told of, and what it refused can be sent again.
    *receiver.answer.lock().unwrap() = "500 Oh No";
    let (code, message) = hone.fails(&["webhooks", "test", &id]);
    assert_eq!((code, message.contains("answered 500")), (1, true), "{message}");
    let pending = hone.json(&["webhooks", "deliveries", &id, "--status", "pending"]);
    let delivery = pending[0]["id"].as_str().unwrap();
    let text = hone.ok(&["webhooks", "deliveries", &id, "--status", "pending"]);
    assert!(text.contains("pending") && text.contains("500") && text.contains("next "), "{text}");
    assert!(hone.ok(&["webhooks", "ls"]).contains("1 failure"));
    *receiver.answer.lock().unwrap() = "200 OK";
    let rotated = hone.ok(&["webhooks", "rotate", &id]);
    assert!(rotated.starts_with("whsec_") && rotated.trim() != secret, "{rotated}");
    hone.ok(&["webhooks", "redeliver", &id, delivery]);
    wait("the message again", || receiver.has("webhook.test", rotated.trim()));

    hone.ok(&["webhooks", "disable", &id]);
    assert!(hone.ok(&["webhooks", "ls"]).contains("disabled"));
    assert!(hone.fails(&["webhooks", "test", &id]).1.contains("is disabled"));
    hone.ok(&["webhooks", "enable", &id]);
    hone.ok(&["webhooks", "test", &id]);
    let (code, message) = hone.fails(&["webhooks", "create", "http://192.0.2.1/x"]);
    assert_eq!(code, 4, "{message}");
    let (code, message) = hone.fails(&["webhooks", "create", &receiver.url, "--event", "nothing"]);
    assert_eq!((code, message.contains("is not a kind of notification")), (4, true), "{message}");
    assert!(hone.ok(&["webhooks", "rm", &receiver.url]).contains("deleted the webhook"));
    let (code, message) = hone.fails(&["webhooks", "rm", &id]);
    assert_eq!((code, message.contains("`hone webhooks ls` lists yours")), (3, true), "{message}");
}
