//! The target's database: like the source's, but shut to everybody except superusers until it opens.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::BackendError;
use crate::postgres::names::Names;
use crate::postgres::session::{Session, get, ident, literal};

/// Settings whose value is a list of names, each of which is quoted on its own.
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// The setting by which what a process writes goes to the disk as it comes.
///
/// Left to the kernel, half a minute of it is written at once, and every commit waits meanwhile whose log is on that disk.
pub(crate) const WRITES_FLOW: (&str, &str) = ("backend_flush_after", "512kB");

/// What the source's database has and the target's gets only when it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub connection_limit: i32,
    pub comment: Option<String>,
    /// The database's own value of [`WRITES_FLOW`]'s setting, which is another one while the database is filled.
    pub flush_after: Option<String>,
}

impl Opening {
    /// Reads it; ask before the fence.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub async fn read(source: &Session) -> Result<Self, BackendError> {
        let sql = "SELECT datconnlimit, shobj_description(oid, 'pg_database'), \
                     (SELECT split_part(setting, '=', 2) FROM pg_db_role_setting, unnest(setconfig) setting \
                      WHERE setdatabase = d.oid AND setrole = 0 AND split_part(setting, '=', 1) = $1) \
                   FROM pg_database d WHERE datname = current_database()";
        let row = source.one("reading the database", sql, &[(&WRITES_FLOW.0, Type::TEXT)]).await?;
        Ok(Self { connection_limit: get(&row, 0)?, comment: get(&row, 1)?, flush_after: get(&row, 2)? })
    }

    /// Statements that open the database to clients and take the mark off it.
    pub fn statements(&self, database: &str) -> Vec<String> {
        let name = ident(database);
        let comment = self.comment.as_deref().map_or("NULL".to_owned(), literal);
        let setting = WRITES_FLOW.0;
        let flush_after = match &self.flush_after {
            Some(own) => format!("SET {setting} = {}", literal(own)),
            None => format!("RESET {setting}"),
        };
        vec![
            format!("ALTER DATABASE {name} {flush_after}"),
            format!("COMMENT ON DATABASE {name} IS {comment}"),
            format!("ALTER DATABASE {name} CONNECTION LIMIT {}", self.connection_limit),
        ]
    }
}

/// Makes the database on the target: owner, encoding, collation, settings and grants of the source's. Only superusers get
/// in. A database that has `names`' mark is taken for what an earlier call made.
///
/// `source` is in the shard's database, `target_server` in another one of the target.
///
/// # Errors
/// [`BackendError::Permanent`] if there is a database of that name that somebody else made.
pub(crate) async fn create_database(
    source: &Session,
    target_server: &Session,
    names: &Names,
) -> Result<(), BackendError> {
    let (shard, fresh, mark) = (source.database(), names.unfinished_database(), names.mark());
    let sql = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
    if let Some(row) = target_server.maybe("looking for the database", sql, &[(&shard, Type::TEXT)]).await? {
        return match get::<Option<String>>(&row, 0)? {
            Some(comment) if comment == mark => Ok(()),
            _ => Err(BackendError::Permanent {
                doing: format!("making database {shard} on node {}", target_server.node()),
                why: "there is one of that name already; make sure that nobody needs it and drop it".into(),
            }),
        };
    }
    // It gets its name only when it has its mark: without one nobody could tell later whose it is.
    let (fresh_name, name) = (ident(&fresh), ident(shard));
    target_server.run("dropping an unfinished database", &format!("DROP DATABASE IF EXISTS {fresh_name}")).await?;
    target_server.run("making the database", &create_statement(source, &fresh_name).await?).await?;
    let mut rest = settings(source, &fresh_name).await?;
    // Of autovacuum and of the subscription's worker too, which no session setting of ours reaches.
    let (setting, flows) = WRITES_FLOW;
    rest.push(format!("ALTER DATABASE {fresh_name} SET {setting} = {}", literal(flows)));
    rest.extend(grants(source, &fresh_name).await?);
    rest.push(format!("COMMENT ON DATABASE {fresh_name} IS {}", literal(&mark)));
    rest.push(format!("ALTER DATABASE {fresh_name} RENAME TO {name}"));
    target_server.run("setting the database up", &rest.join(";\n")).await
}

async fn create_statement(source: &Session, name: &str) -> Result<String, BackendError> {
    let sql = "SELECT pg_encoding_to_char(encoding)::text, datlocprovider::text, datcollate::text, datctype::text, \
                 COALESCE(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), r.rolname::text, t.spcname::text \
               FROM pg_database d JOIN pg_roles r ON r.oid = datdba JOIN pg_tablespace t ON t.oid = dattablespace \
               WHERE datname = current_database()";
    let row = source.one("reading the database", sql, &[]).await?;
    let text = |column| -> Result<String, BackendError> { Ok(literal(get(&row, column)?)) };
    let locale = get::<Option<&str>>(&row, 4)?.map(literal);
    let provider = match (get::<&str>(&row, 1)?, locale) {
        ("i", Some(locale)) => format!("LOCALE_PROVIDER icu ICU_LOCALE {locale}"),
        ("b", Some(locale)) => format!("LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"),
        _ => "LOCALE_PROVIDER libc".to_owned(),
    };
    Ok(format!(
        "CREATE DATABASE {name} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {} {provider} \
         TABLESPACE {} CONNECTION LIMIT 0",
        ident(get(&row, 5)?),
        text(0)?,
        text(2)?,
        text(3)?,
        ident(get(&row, 6)?),
    ))
}

/// `ALTER DATABASE ... SET` and `ALTER ROLE ... IN DATABASE ... SET`.
async fn settings(source: &Session, name: &str) -> Result<Vec<String>, BackendError> {
    let sql = "SELECT r.rolname::text, s.setting FROM pg_db_role_setting d LEFT JOIN pg_roles r ON r.oid = d.setrole, \
                 LATERAL unnest(d.setconfig) WITH ORDINALITY s(setting, place) \
               WHERE d.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1, s.place";
    let rows = source.query("reading the database's settings", sql, &[]).await?;
    let statement = |row: &Row| -> Result<Option<String>, BackendError> {
        let setting: &str = get(row, 1)?;
        let Some((parameter, value)) = setting.split_once('=') else { return Ok(None) };
        let whose = match get::<Option<&str>>(row, 0)? {
            Some(role) => format!("ROLE {} IN DATABASE {name}", ident(role)),
            None => format!("DATABASE {name}"),
        };
        let value = if LISTS.contains(&parameter) { listed(value) } else { literal(value) };
        let parameter = parameter.split('.').map(ident).collect::<Vec<_>>().join(".");
        Ok(Some(format!("ALTER {whose} SET {parameter} = {value}")))
    };
    rows.iter().filter_map(|row| statement(row).transpose()).collect()
}

/// A list of names as it is kept, `"$user", public`, as the literals that it is set by.
fn listed(value: &str) -> String {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = value.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => name.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            c if c.is_whitespace() && !quoted => {}
            c => name.push(c),
        }
    }
    names.push(name);
    names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
}

async fn grants(source: &Session, name: &str) -> Result<Vec<String>, BackendError> {
    let sql = "SELECT r.rolname::text, a.privilege_type, a.is_grantable, w.rolname::text FROM pg_database d \
               JOIN pg_roles w ON w.oid = d.datdba, LATERAL aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee \
               WHERE datname = current_database() AND (r.rolname IS NOT NULL OR a.grantee = 0) ORDER BY 1 NULLS FIRST, 2";
    let is_set = "SELECT r.rolname::text FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba \
                  WHERE datname = current_database() AND datacl IS NOT NULL";
    let Some(owner) = source.maybe("reading the database's grants", is_set, &[]).await? else { return Ok(Vec::new()) };
    let owner: String = get(&owner, 0)?;
    let mut statements = vec![format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC, {}", ident(&owner))];
    for row in source.query("reading the database's grants", sql, &[]).await? {
        let (role, right): (Option<&str>, &str) = (get(&row, 0)?, get(&row, 1)?);
        let role = role.map_or("PUBLIC".to_owned(), ident);
        let option = if get(&row, 2)? { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {right} ON DATABASE {name} TO {role}{option}"));
    }
    Ok(statements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_set_name_by_name() {
        assert_eq!(listed("\"$user\", public"), "'$user', 'public'");
        assert_eq!(listed("\"a, \"\"b\"\"\",C"), "'a, \"b\"', 'C'");
        assert_eq!(listed("\"\""), "''");
    }

    #[test]
    fn a_database_opens_with_its_own_limit_and_comment() {
        let mut opening = Opening { connection_limit: -1, comment: None, flush_after: None };
        let expected = [
            "ALTER DATABASE \"a\"\"b\" RESET backend_flush_after",
            "COMMENT ON DATABASE \"a\"\"b\" IS NULL",
            "ALTER DATABASE \"a\"\"b\" CONNECTION LIMIT -1",
        ];
        assert_eq!(opening.statements("a\"b"), expected);
        opening.flush_after = Some("64".into());
        assert_eq!(opening.statements("a")[0], "ALTER DATABASE \"a\" SET backend_flush_after = '64'");
    }
}
