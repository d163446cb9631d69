//! A server that answers as it is told to, over TLS where it has a certificate.

use super::*;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::thread;

const GOOD: &str =
    r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"db":"a"},"values":[[60,"1"]]}]}}"#;

/// Answers one connection after the other; remembers what it was asked.
struct Scripted {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

fn scripted(answers: Vec<(u16, String)>, tls: Option<Arc<rustls::ServerConfig>>) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let heard = Arc::clone(&asked);
    thread::spawn(move || {
        for (status, body) in answers {
            let (stream, _) = listener.accept().unwrap();
            // One that does not trust the server leaves in the middle.
            _ = match &tls {
                None => talk(stream, &heard, status, &body),
                Some(config) => {
                    let connection = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                    talk(rustls::StreamOwned::new(connection, stream), &heard, status, &body)
                }
            };
        }
    });
    Scripted { addr, asked }
}

/// Notes what is asked before it answers.
fn talk(mut stream: impl Read + Write, heard: &Mutex<Vec<String>>, status: u16, body: &str) -> Option<()> {
    let mut request = Vec::new();
    let mut byte = [0; 1];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        request.extend(byte);
    }
    let head = String::from_utf8(request).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
    let mut form = vec![0; length];
    stream.read_exact(&mut form).ok()?;
    heard.lock().unwrap().push(format!("{head}{}", String::from_utf8(form).unwrap()));
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).ok()?;
    stream.flush().ok()
}

fn source(addr: SocketAddr) -> PrometheusSource {
    PrometheusSource::new(&settings(format!("http://{addr}/prom/"))).unwrap()
}

fn settings(url: String) -> SourceSettings {
    let token = Some("secret-token".to_owned());
    SourceSettings { url, token, timeout: Duration::from_secs(20), tries: 3, ca: None }
}

/// Asks for `points` points from the first minute on.
fn ask(source: &PrometheusSource, points: i64) -> Result<usize, SourceError> {
    let (from, mut parts) = (Timestamp::from_ms(60_000), 0);
    let range = (from, from.plus_steps(points, Step::MINUTE), Step::MINUTE);
    source.range("a+b", range, &mut |_| parts += 1)?;
    Ok(parts)
}

#[test]
fn a_long_range_is_asked_for_in_parts() {
    let server = scripted(vec![(200, GOOD.to_owned()); 2], None);
    assert_eq!(ask(&source(server.addr), MOST_POINTS + 1).unwrap(), 2);
    let asked = server.asked.lock().unwrap();
    assert!(asked[0].starts_with("post /prom/api/v1/query_range http/1.1"), "{}", asked[0]);
    assert!(asked[0].contains("authorization: bearer secret-token"));
    let end = 60 * MOST_POINTS;
    assert!(asked[0].ends_with(&format!("query=a%2Bb&start=60.000&end={end}.000&step=60.000")), "{}", asked[0]);
    assert!(asked[1].ends_with(&format!("&start={0}.000&end={0}.000&step=60.000", end + 60)), "{}", asked[1]);
}

#[test]
fn what_is_too_much_is_asked_for_in_halves() {
    let much = r#"{"status":"error","errorType":"execution","error":"query processing would load too many samples"}"#;
    let answers = vec![(422, much.to_owned()), (200, GOOD.to_owned()), (200, GOOD.to_owned())];
    let server = scripted(answers, None);
    assert_eq!(ask(&source(server.addr), 8).unwrap(), 2);
    assert!(server.asked.lock().unwrap()[2].contains("start=300.000&end=480.000"));
    let server = scripted(vec![(422, much.to_owned())], None);
    let error = ask(&source(server.addr), 1).unwrap_err();
    assert!(matches!(error, SourceError::Refused { status: 422, .. }), "{error}");
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_told() {
    let server = scripted(vec![(502, "<html>".into()), (500, String::new()), (200, GOOD.into())], None);
    assert_eq!(ask(&source(server.addr), 1).unwrap(), 1);
    let bad = r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#;
    let server = scripted(vec![(400, bad.into())], None);
    let error = ask(&source(server.addr), 1).unwrap_err();
    assert!(!error.is_transient());
    assert_eq!(error.to_string(), r#"Prometheus refused "a+b" (400 bad_data): 1:3: parse error"#);
    let server = scripted(vec![(401, "who are you".into())], None);
    assert!(ask(&source(server.addr), 1).unwrap_err().to_string().contains("(401 ): who are you"));
    let server = scripted(vec![(200, "<html>".into())], None);
    assert!(matches!(ask(&source(server.addr), 1).unwrap_err(), SourceError::Unreadable { .. }));
    let vector = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
    let server = scripted(vec![(200, vector.into())], None);
    assert!(matches!(ask(&source(server.addr), 1).unwrap_err(), SourceError::NoRange { .. }));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = ask(&source(nobody), 1).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("cannot be asked"), "{error}");
}

#[test]
fn the_certificate_must_come_from_the_named_authority() {
    let authority = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (mine, other) = (authority(), authority());
    let key = rustls::pki_types::PrivateKeyDer::try_from(mine.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![mine.cert.der().clone()], key)
        .unwrap();
    let server = scripted(vec![(200, GOOD.into()); 4], Some(Arc::new(config)));
    let url = format!("https://{}", server.addr);
    let with = |pem: String| {
        let ca = Some(pem.into_bytes());
        PrometheusSource::new(&SourceSettings { ca, tries: 1, ..settings(url.clone()) })
    };
    assert_eq!(ask(&with(mine.cert.pem()).unwrap(), 1).unwrap(), 1);
    let error = ask(&with(other.cert.pem()).unwrap(), 1).unwrap_err();
    assert!(matches!(error, SourceError::Exchange { .. }), "{error}");
    assert!(matches!(with("nothing".into()), Err(SourceError::Authorities(_))));
    assert!(matches!(PrometheusSource::new(&settings(url.clone())), Err(SourceError::NoAuthorities { .. })));
}

#[test]
fn addresses_are_checked_before_anything_is_asked() {
    for url in ["", "localhost:9090", "http://", "ftp://x", "http:// x", "http://x/?a=b"] {
        let made = PrometheusSource::new(&settings(url.to_owned()));
        assert!(matches!(made, Err(SourceError::Url { .. })), "{url}");
    }
}
