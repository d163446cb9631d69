use super::*;
use crate::postgres::settings::PrometheusUrl;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What a Prometheus of the test says to a query.
pub(in crate::postgres::observe) type Says = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

pub(in crate::postgres::observe) enum Reply {
    Value(&'static str),
    Body(u16, String),
    /// Nothing, for ever.
    Silence,
    /// A part of what it has announced.
    Half,
}

fn vector(values: &[&str]) -> String {
    let series: Vec<_> =
        values.iter().map(|value| format!(r#"{{"metric":{{}},"value":[1700000000.1,"{value}"]}}"#)).collect();
    format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}}}}"#, series.join(","))
}

/// Answers one query of each connection.
pub(in crate::postgres::observe) async fn serve(says: Says) -> PrometheusUrl {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/prom", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let says = Arc::clone(&says);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let target = request.split(' ').nth(1).unwrap();
                let query = target.strip_prefix("/prom/api/v1/query?query=").expect(target);
                let query = percent_encoding::percent_decode_str(query).decode_utf8().unwrap();
                let (status, body) = match says(&query) {
                    Reply::Value(value) => (200, vector(&[value])),
                    Reply::Body(status, body) => (status, body),
                    Reply::Silence => std::future::pending().await,
                    Reply::Half => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{").await.unwrap();
                        return;
                    }
                };
                let head = format!("HTTP/1.1 {status} So\r\nContent-Length: {}\r\n\r\n", body.len());
                // Whoever has had enough does not read to the end.
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    url.try_into().unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

async fn source(says: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Prometheus {
    let instances = BTreeMap::from([(node("n"), r#"a"b\c"#.to_owned())]);
    let (url, timeout) = (Some(serve(Arc::new(says)).await), Duration::from_millis(500));
    Prometheus::new(&PrometheusSettings { url, instances, timeout, ..PrometheusSettings::default() }).unwrap()
}

const NOBODY: Backend = Backend { pid: 1, age_s: 0.0 };

#[tokio::test]
async fn four_numbers_make_the_use_of_a_machine() {
    let prometheus = source(|query| {
        assert!(query.contains(r#"instance="a\"b\\c""#), "quoted: {query}");
        match query {
            q if q.starts_with("sum(rate(node_cpu") => Reply::Value("1.5"),
            q if q.starts_with("count(node_cpu") => Reply::Value("8"),
            q if q.contains(" - ") => Reply::Value("2.5e9"),
            _ => Reply::Value("16000000000"),
        }
    })
    .await;
    assert!(prometheus.knows(&node("n")) && !prometheus.knows(&node("m")));
    assert_eq!(prometheus.usage(&node("m"), NOBODY).await, None);
    let began = Instant::now();
    let first = prometheus.usage(&node("n"), NOBODY).await.unwrap();
    assert_eq!((first.cpu_s, first.cores, first.memory_bytes), (0.0, 8.0, 16e9));
    assert_eq!((first.memory(), first.processes.len()), (2.5e9, 0));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = prometheus.usage(&node("n"), NOBODY).await.unwrap();
    let most = 1.5 * began.elapsed().as_secs_f64();
    assert!((0.45..=most).contains(&second.cpu_s), "{} of at most {most}", second.cpu_s);
    assert_eq!(second.incarnation, first.incarnation);
}

#[tokio::test]
async fn what_is_not_told_is_unknown_and_named() {
    let huge = format!(r#"{{"data":null,"error":"{}"}}"#, "x".repeat(MOST_BYTES));
    let refused = r#"{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\""}"#;
    let cases: Vec<(Reply, &str)> = vec![
        (Reply::Body(200, vector(&[])), "0 series match"),
        (Reply::Body(200, vector(&["1", "2"])), "2 series match"),
        (Reply::Value("NaN"), "\"NaN\", no number"),
        (Reply::Value("+Inf"), "\"+Inf\", no number"),
        (Reply::Value("-1"), "\"-1\", no number"),
        (Reply::Value("much"), "\"much\", no number"),
        (Reply::Body(400, refused.into()), "invalid parameter \"query\""),
        (Reply::Body(200, refused.into()), "invalid parameter"),
        (Reply::Body(503, "<html>no</html>".into()), "(503 Service Unavailable): <html>no"),
        (Reply::Body(200, "<html>log in</html>".into()), "cannot be read (200 OK)"),
        (Reply::Body(200, r#"{"data":{"resultType":"matrix","result":[]}}"#.into()), "unknown variant `matrix`"),
        (Reply::Body(200, huge), "longer than"),
        (Reply::Silence, "in time"),
        (Reply::Half, "the exchange failed"),
    ];
    for (reply, words) in cases {
        let reply = Mutex::new(Some(reply));
        let prometheus = source(move |_| reply.lock().unwrap().take().unwrap()).await;
        let (query, error) = prometheus.ask("up".to_owned()).await.unwrap_err();
        let error = with_causes(&error);
        assert_eq!(query, "up");
        assert!(error.contains(words), "{words}: {error}");
    }
    let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000,"4"]}}"#;
    assert_eq!(number(StatusCode::OK, scalar.as_bytes()).unwrap(), 4.0);
}

#[tokio::test]
async fn a_prometheus_that_is_gone_is_unknown_once_and_counts_on_when_it_is_back() {
    let asked = AtomicUsize::new(0);
    let prometheus = source(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        4..8 => Reply::Body(500, String::new()),
        _ => Reply::Value("2"),
    })
    .await;
    let is_untold = || prometheus.counts.lock().unwrap()[&node("n")].is_untold;
    let first = prometheus.usage(&node("n"), NOBODY).await.unwrap();
    assert_eq!(prometheus.usage(&node("n"), NOBODY).await, None);
    assert!(is_untold());
    // What the failed call has still asked is answered before the next one.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let third = loop {
        if let Some(usage) = prometheus.usage(&node("n"), NOBODY).await {
            break usage;
        }
    };
    assert!(!is_untold() && third.cpu_s > first.cpu_s);
    let nobody: PrometheusUrl = "http://127.0.0.1:1".to_owned().try_into().unwrap();
    let settings = PrometheusSettings { url: Some(nobody), ..PrometheusSettings::default() };
    let (_, error) = Prometheus::new(&settings).unwrap().ask("up".to_owned()).await.unwrap_err();
    assert!(matches!(error, Untold::Unreachable(_)), "{error:?}");
}
