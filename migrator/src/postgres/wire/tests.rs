use super::*;
use crate::cause::with_causes;
use crate::postgres::lsn::Lsn;
use crate::postgres::pgoutput::{Message, Value};
use crate::postgres::test_server::{LIMIT, TestServer, impostor};

/// For what should reach its limit; long enough for what comes before it on a busy machine.
const SHORT: Duration = Duration::from_secs(1);

async fn connect(server: &TestServer, database: &str) -> ReplicationConnection {
    ReplicationConnection::connect(&server.params(database), LIMIT).await.unwrap()
}

async fn slots(session: &tokio_postgres::Client, database: &str) -> Vec<String> {
    let query = "SELECT slot_name::text FROM pg_replication_slots WHERE database = $1 ORDER BY 1";
    session.query(query, &[&database]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn stream_from(slot: &str, publication: &str) -> StreamFrom {
    StreamFrom { slot: slot.into(), from: Lsn(0), publications: vec![publication.into()], messages: false }
}

/// Values of the inserted rows up to the next commit, and where it ends.
async fn inserted(stream: &mut LogicalStream) -> (Vec<String>, Lsn) {
    let mut values = Vec::new();
    loop {
        let Event::Data(data) = stream.next(LIMIT).await.unwrap() else { continue };
        match Message::parse(&data).unwrap() {
            Message::Insert { new, .. } => match new.0.as_slice() {
                [Value::Text(text), ..] => values.push((*text).to_owned()),
                other => panic!("{other:?}"),
            },
            Message::Commit { end, .. } => return (values, end),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_exported_snapshot_is_usable_and_its_slot_goes_on_where_it_ends() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let session = server.session(&database).await;
    // A server that is impatient with idle transactions must not end the snapshot.
    let impatient = format!(
        "ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '300ms';
         ALTER DATABASE {database} SET idle_session_timeout = '300ms';"
    );
    session.batch_execute(&impatient).await.unwrap();
    let setup =
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3); CREATE PUBLICATION p FOR TABLE t;";
    session.batch_execute(setup).await.unwrap();

    let mut exported =
        connect(&server, &database).await.export_snapshot("snap", SlotLife::Lasting, LIMIT).await.unwrap();
    session.batch_execute("INSERT INTO t VALUES (4)").await.unwrap();
    assert_eq!(exported.slot().name, "snap");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    exported.still_held().unwrap();

    let copy = server.session(&database).await;
    let take = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", exported.name());
    copy.batch_execute(&take).await.unwrap();
    let ids: Vec<i32> =
        copy.query("SELECT id FROM t ORDER BY id", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, [1, 2, 3], "later rows are not in the snapshot");

    let from = exported.slot().consistent_point;
    let mut connection = exported.release();
    assert_eq!(connection.simple_query("SELECT 1, NULL", LIMIT).await.unwrap(), [vec![Some("1".to_owned()), None]]);
    let refused = server.session(&database).await.batch_execute(&take).await;
    assert!(refused.is_err(), "a command on the connection has ended the snapshot");

    let mut stream = connection.start_logical(&stream_from("snap", "p"), LIMIT).await.unwrap();
    let (values, end) = inserted(&mut stream).await;
    assert_eq!(values, ["4"], "the stream has what the snapshot has not");
    assert!(from < end);
}

#[tokio::test]
async fn a_lost_connection_is_noticed_by_the_holder_of_the_snapshot() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let mut exported =
        connect(&server, &database).await.export_snapshot("held", SlotLife::Temporary, LIMIT).await.unwrap();
    exported.still_held().unwrap();
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'held'";
    server.session(&database).await.batch_execute(end).await.unwrap();
    let error = loop {
        match exported.still_held() {
            Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.sql_state(), Some("57P01"), "{}", with_causes(&error));
}

#[tokio::test]
async fn slots_live_as_long_as_they_should() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let session = server.session(&database).await;
    let mut connection = connect(&server, &database).await;
    let temporary = connection.create_logical_slot("goes", SlotLife::Temporary, LIMIT).await.unwrap();
    assert_eq!((temporary.name.as_str(), &temporary.snapshot), ("goes", &None));
    assert!(temporary.consistent_point > Lsn(0));
    // A name that a replication command would take for a word of its own or a number.
    for name in ["logical", "7up"] {
        connection.create_logical_slot(name, SlotLife::Lasting, LIMIT).await.unwrap();
    }
    assert_eq!(slots(&session, &database).await, ["7up", "goes", "logical"]);
    let again = connection.create_logical_slot("logical", SlotLife::Lasting, LIMIT).await.unwrap_err();
    assert_eq!(again.sql_state(), Some("42710"), "{}", with_causes(&again));
    connection.close(LIMIT).await.unwrap();
    assert_eq!(slots(&session, &database).await, ["7up", "logical"]);
    let mut connection = connect(&server, &database).await;
    connection.drop_slot("7up", LIMIT).await.unwrap();
    connection.drop_slot("logical", LIMIT).await.unwrap();
    let gone = connection.drop_slot("logical", LIMIT).await.unwrap_err();
    assert_eq!(gone.sql_state(), Some("42704"));
    for name in ["", "A", "a-b", "a\"b", "a b", &"a".repeat(64)] {
        let error = connection.create_logical_slot(name, SlotLife::Temporary, LIMIT).await.unwrap_err();
        assert!(matches!(error.cause, WireCause::SlotName { .. }), "{name:?}");
    }
}

#[tokio::test]
async fn a_slot_that_takes_too_long_is_called_off_and_leaves_nothing() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let session = server.session(&database).await;
    session.batch_execute("CREATE TABLE t (id int); BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let mut connection = connect(&server, &database).await;
    let error = connection.create_logical_slot("late", SlotLife::Lasting, SHORT).await.unwrap_err();
    assert!(error.is_timeout(), "{}", with_causes(&error));
    session.batch_execute("COMMIT").await.unwrap();
    assert_eq!(slots(&session, &database).await, Vec::<String>::new());
    connection.create_logical_slot("late", SlotLife::Lasting, LIMIT).await.unwrap();
    connection.drop_slot("late", LIMIT).await.unwrap();
}

#[tokio::test]
async fn every_kind_of_password_works_and_a_wrong_one_is_refused_in_the_servers_words() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let roles = "SET password_encryption = 'scram-sha-256';
         CREATE ROLE by_scram LOGIN REPLICATION PASSWORD 'pässwörd ''1''';
         CREATE ROLE by_clear_text LOGIN REPLICATION PASSWORD 'pässwörd ''1''';
         SET password_encryption = 'md5';
         CREATE ROLE by_md5 LOGIN REPLICATION PASSWORD 'pässwörd ''1''';";
    server.session(&database).await.batch_execute(roles).await.unwrap();
    for user in ["by_scram", "by_md5", "by_clear_text"] {
        let mut params = ConnectParams { user: user.into(), ..server.params(&database) };
        let error = ReplicationConnection::connect(&params, LIMIT).await.unwrap_err();
        assert!(matches!(error.cause, WireCause::Login(_)), "no password: {}", with_causes(&error));
        params.password = Some("wrong".into());
        let error = ReplicationConnection::connect(&params, LIMIT).await.unwrap_err();
        let text = with_causes(&error);
        assert!(text.contains(&format!("password authentication failed for user \"{user}\"")), "{text}");
        assert_eq!(error.sql_state(), Some("28P01"));
        params.password = Some("pässwörd '1'".into());
        let mut connection = ReplicationConnection::connect(&params, LIMIT).await.unwrap();
        assert_eq!(connection.simple_query("SELECT current_user", LIMIT).await.unwrap(), [vec![Some(user.to_owned())]]);
        assert!(!format!("{params:?} {connection:?}").contains("pässwörd"));
    }
}

#[tokio::test]
async fn the_servers_errors_keep_their_parts_and_the_connection_goes_on() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let mut connection = connect(&server, &database).await;
    let raise = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'XX123', DETAIL = 'because', HINT = 'do'; END $$";
    let error = connection.simple_query(raise, LIMIT).await.unwrap_err();
    let WireCause::Server(said) = &error.cause else { panic!("{error:?}") };
    let ServerError { severity, code, message, detail, hint } = said.as_ref().clone();
    assert_eq!((severity.as_str(), code.as_str(), message.as_str()), ("ERROR", "XX123", "no"));
    assert_eq!((detail.as_deref(), hint.as_deref()), (Some("because"), Some("do")));
    assert_eq!(
        connection.simple_query("SHOW application_name", LIMIT).await.unwrap()[0][0].as_deref(),
        Some("foreshard tests")
    );
    assert_eq!(connection.simple_query("SHOW TimeZone", LIMIT).await.unwrap()[0][0].as_deref(), Some("UTC"));

    let error = ReplicationConnection::connect(&server.params("nowhere"), LIMIT).await.unwrap_err();
    assert_eq!(error.sql_state(), Some("3D000"));
    assert!(error.to_string().contains("/nowhere"), "{error}");
    let secret = connection.simple_query("ALTER ROLE nobody PASSWORD 'secret'", LIMIT).await.unwrap_err();
    assert!(!with_causes(&secret).contains("secret"), "{}", with_causes(&secret));
}

#[tokio::test]
async fn a_unix_socket_is_as_good() {
    let Some(server) = TestServer::shared() else { return };
    let params = ConnectParams { host: server.socket_folder(), ..server.params("postgres") };
    let mut connection = ReplicationConnection::connect(&params, LIMIT).await.unwrap();
    let address = connection.simple_query("SELECT inet_client_addr()", LIMIT).await.unwrap();
    assert_eq!(address, [vec![None]], "no address: not over TCP");
}

#[tokio::test]
async fn a_call_that_was_given_up_leaves_no_answer_for_the_next() {
    let Some(server) = TestServer::shared() else { return };
    let mut connection = connect(&server, "postgres").await;
    let error = connection.simple_query("SELECT pg_sleep(10)", SHORT).await.unwrap_err();
    assert!(error.is_timeout());
    let error = connection.simple_query("SELECT 1", LIMIT).await.unwrap_err();
    assert!(matches!(error.cause, WireCause::OutOfStep));
}

#[tokio::test]
async fn a_stream_goes_on_where_it_was_confirmed() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let session = server.session(&database).await;
    let odd = r#"Odd "name", 'quoted' ä"#;
    let setup = format!("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION {} FOR TABLE t", identifier(odd));
    session.batch_execute(&setup).await.unwrap();
    let mut connection = connect(&server, &database).await;
    connection.create_logical_slot("again", SlotLife::Lasting, LIMIT).await.unwrap();
    for id in 1..=2 {
        session.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
    }
    let mut stream = connection.start_logical(&stream_from("again", odd), LIMIT).await.unwrap();
    let (first, end) = inserted(&mut stream).await;
    assert_eq!(first, ["1"]);
    stream.confirm(end);
    let connection = stream.finish(LIMIT).await.unwrap();
    let error = connection.start_logical(&stream_from("again", odd), LIMIT).await.unwrap_err();
    assert!(matches!(error.cause, WireCause::StreamedBefore), "the server would end it at once");
    let connection = connect(&server, &database).await;
    let mut stream = connection.start_logical(&stream_from("again", odd), LIMIT).await.unwrap();
    let (second, end) = inserted(&mut stream).await;
    assert_eq!(second, ["2"], "the first was confirmed, the second was not");

    stream.confirm(end);
    stream.send_status(false);
    stream.flush(LIMIT).await.unwrap();
    let confirmed =
        "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'again' AND confirmed_flush_lsn >= $1::text::pg_lsn";
    while session.query(confirmed, &[&end.to_string()]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut connection = stream.finish(LIMIT).await.unwrap();
    connection.drop_slot("again", LIMIT).await.unwrap();
}

#[tokio::test]
async fn keep_alives_that_ask_are_answered_and_give_up_calls_lose_nothing() {
    let Some(server) = TestServer::shared() else { return };
    let database = server.database().await;
    let session = server.session(&database).await;
    let setup = format!(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t;
         ALTER DATABASE {database} SET wal_sender_timeout = '600ms'"
    );
    session.batch_execute(&setup).await.unwrap();
    let mut connection = connect(&server, &database).await;
    connection.create_logical_slot("patient", SlotLife::Temporary, LIMIT).await.unwrap();
    let mut stream = connection.start_logical(&stream_from("patient", "p"), LIMIT).await.unwrap();
    let mut keep_alives = 0;
    for _ in 0..200 {
        // Dropped and repeated all the time.
        match stream.next(Duration::from_millis(10)).await {
            Ok(Event::KeepAlive { .. }) => keep_alives += 1,
            Ok(Event::Data(_)) => panic!("nothing was written"),
            Err(error) => assert!(error.is_timeout(), "{}", with_causes(&error)),
        }
    }
    assert!(keep_alives >= 2, "{keep_alives} in two seconds");
    session.batch_execute("INSERT INTO t VALUES (7)").await.unwrap();
    assert_eq!(inserted(&mut stream).await.0, ["7"]);
}

#[tokio::test]
async fn a_stream_tells_why_it_ends() {
    let Some(mut server) = TestServer::own() else { return };
    let database = server.database().await;
    let mut connection = connect(&server, &database).await;
    connection.create_logical_slot("doomed", SlotLife::Lasting, LIMIT).await.unwrap();
    let other = connect(&server, &database).await;
    let mut stream = connection.start_logical(&stream_from("doomed", "p"), LIMIT).await.unwrap();
    let busy = other.start_logical(&stream_from("doomed", "p"), LIMIT).await.unwrap_err();
    assert_eq!(busy.sql_state(), Some("55006"), "{}", with_causes(&busy));
    server.kill();
    let error = loop {
        match stream.next(LIMIT).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(!error.is_timeout() && error.to_string().contains("doomed"), "{}", with_causes(&error));
}

#[tokio::test]
async fn whoever_is_no_server_is_found_out() {
    let silent = ReplicationConnection::connect(&impostor(b"").await, SHORT).await.unwrap_err();
    assert!(silent.is_timeout(), "{}", with_causes(&silent));
    let connect = async |bytes| ReplicationConnection::connect(&impostor(bytes).await, LIMIT).await.unwrap_err();
    let error = connect(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert!(matches!(error.cause, WireCause::TooLong { .. }), "{}", with_causes(&error));
    let error = connect(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x08\0\0\0\0").await;
    assert!(matches!(error.cause, WireCause::Login(_)), "no proof of the password: {}", with_causes(&error));
    let error = connect(b"R\0\0\0\x0c\0\0\0\x0bevil").await;
    assert!(matches!(error.cause, WireCause::Login(_)), "out of order: {}", with_causes(&error));
    let error = connect(b"R\0\0\0\x08\0\0\0\x09").await;
    assert!(matches!(error.cause, WireCause::Login(_)), "SSPI: {}", with_causes(&error));
}
