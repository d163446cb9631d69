CREATE SCHEMA "Übel ""x"".y";
CREATE SCHEMA ext;
CREATE SCHEMA "select" AUTHORIZATION app_owner;
CREATE EXTENSION hstore WITH SCHEMA ext VERSION '1.4';
ALTER EXTENSION hstore UPDATE;
CREATE EXTENSION citext WITH SCHEMA public;
CREATE EXTENSION pgcrypto WITH SCHEMA ext;

CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s fine');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text, c mood);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE FUNCTION double(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO public.notes (what) VALUES (TG_NAME || TG_OP); RETURN NULL; END';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);

CREATE TABLE notes (id bigserial PRIMARY KEY, what text);
CREATE TABLE types (
  id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY,
  m mood DEFAULT 'ok', ms mood[], p positive, pr pair, prs pair[], s span, ss int4multirange, h ext.hstore, c citext, cs citext[],
  j jsonb, js json, n numeric, f float8, t timestamptz, i interval, b bytea, x xml, o regclass, u uuid DEFAULT gen_random_uuid(),
  arr int[][], bits varbit, ip inet, big text, twice int GENERATED ALWAYS AS (double(p)) STORED);
INSERT INTO types (m, ms, p, pr, prs, s, ss, h, c, cs, j, js, n, f, t, i, b, x, o, arr, bits, ip, big)
  SELECT 'sad', '{ok,"it''s fine"}', g, (g, E'quo"te\\, \t\n', 'ok')::pair, ARRAY[(g, NULL, 'sad')::pair], '[1.5,2.5)', '{[1,3),[5,9)}',
    'a=>1, "b c"=>NULL', 'MiXed', '{A,b}', '{"a":[1,null]}', '{"a": 1,"a":2}', 'NaN', 'Infinity', '2020-02-29 12:00:00.123456+05',
    '1 mon -2 days 03:00', '\x00ff5c', '<a>&amp;</a>', 'notes', '[0:1][2:3]={{1,2},{3,NULL}}', B'10101', 'fe80::1/64', repeat('y', g)
  FROM generate_series(1, 300) g;
INSERT INTO types (p, big, b) SELECT 1, string_agg(md5(g::text), ''), decode(string_agg(md5(g::text), ''), 'hex')
  FROM generate_series(1, 330000) g;

CREATE TABLE "Übel ""x"".y"."Tab.le ""1""" (
  "ORDER" serial, "group" int, "a.b" text COLLATE "C", gone int, "Ü ö" positive DEFAULT 1, PRIMARY KEY ("ORDER", "group"));
ALTER TABLE "Übel ""x"".y"."Tab.le ""1""" DROP COLUMN gone;
INSERT INTO "Übel ""x"".y"."Tab.le ""1""" ("group", "a.b") SELECT g % 7, NULLIF(g % 5, 0)::text FROM generate_series(1, 20000) g;
CREATE INDEX "in dex" ON "Übel ""x"".y"."Tab.le ""1""" (lower("a.b") DESC NULLS LAST) INCLUDE ("group") WHERE "group" > 2;
COMMENT ON INDEX "Übel ""x"".y"."in dex" IS 'an ''index''';
CREATE STATISTICS "Übel ""x"".y".st ON "group", "a.b" FROM "Übel ""x"".y"."Tab.le ""1""";

CREATE TABLE parted (id int, region text, at date NOT NULL, PRIMARY KEY (id, region, at)) PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('de', 'fr') PARTITION BY RANGE (at);
CREATE TABLE parted_eu_old PARTITION OF parted_eu FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE parted_eu_new PARTITION OF parted_eu FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
CREATE TABLE "select"."default" (at date NOT NULL, id int NOT NULL, region text NOT NULL);
ALTER TABLE parted ATTACH PARTITION "select"."default" DEFAULT;
CREATE INDEX ON parted (at);
CREATE UNIQUE INDEX only_new ON parted_eu_new (at, id);
INSERT INTO parted SELECT g, (ARRAY['de', 'fr', 'us', 'jp'])[g % 4 + 1], '2019-01-01'::date + g % 700 FROM generate_series(1, 5000) g;

CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree DEFERRABLE INITIALLY DEFERRED);
BEGIN; INSERT INTO tree SELECT g, NULLIF(g % 100, 0) FROM generate_series(200, 1, -1) g; COMMIT;
CREATE TABLE child (tree int REFERENCES tree ON DELETE CASCADE, pid int, pr text, pa date,
  FOREIGN KEY (pid, pr, pa) REFERENCES parted, k int UNIQUE, EXCLUDE USING gist (r WITH &&), r int4range);
INSERT INTO child SELECT g, 4, 'de', '2019-01-05', g, int4range(g, g + 1) FROM generate_series(1, 50) g;
ALTER TABLE child ADD CONSTRAINT late CHECK (tree < 10) NOT VALID;
ALTER TABLE child ADD CONSTRAINT fk_late FOREIGN KEY (k) REFERENCES tree NOT VALID;

CREATE TABLE nothing ();
INSERT INTO nothing SELECT FROM generate_series(1, 17);
CREATE TABLE base (id int PRIMARY KEY, v text);
CREATE TABLE derived (extra int, PRIMARY KEY (id)) INHERITS (base);
INSERT INTO base SELECT g, 'base' FROM generate_series(1, 10) g;
INSERT INTO derived SELECT g, 'derived', g FROM generate_series(11, 30) g;
CREATE TABLE by_index (a int NOT NULL, b int);
CREATE UNIQUE INDEX by_index_a ON by_index (a);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a;
ALTER TABLE nothing REPLICA IDENTITY FULL;
CREATE INDEX by_index_b ON by_index (b);
ALTER TABLE by_index CLUSTER ON by_index_b;
INSERT INTO by_index SELECT g, -g FROM generate_series(1, 100) g;

CREATE TRIGGER plain AFTER INSERT ON tree FOR EACH ROW EXECUTE FUNCTION noted();
CREATE TRIGGER off AFTER INSERT ON tree FOR EACH ROW EXECUTE FUNCTION noted();
ALTER TABLE tree DISABLE TRIGGER off;
CREATE TRIGGER "on replica" AFTER INSERT ON tree FOR EACH ROW WHEN (NEW.id > 0) EXECUTE FUNCTION noted();
ALTER TABLE tree ENABLE REPLICA TRIGGER "on replica";
COMMENT ON TRIGGER "on replica" ON tree IS 'held';
CREATE TRIGGER always AFTER INSERT ON parted FOR EACH ROW EXECUTE FUNCTION noted();
ALTER TABLE parted ENABLE ALWAYS TRIGGER always;
CREATE CONSTRAINT TRIGGER checked AFTER INSERT ON child DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION noted();
CREATE TRIGGER foreshard_guard BEFORE INSERT ON tree FOR EACH STATEMENT EXECUTE FUNCTION noted();
COMMENT ON TRIGGER foreshard_guard ON tree IS 'of a move';

CREATE VIEW ordered AS SELECT id, count(*) AS n FROM tree GROUP BY id;
CREATE VIEW by_key AS SELECT t.*, count(c.k) AS children FROM types t LEFT JOIN child c ON c.tree = t.id GROUP BY t.id;
CREATE MATERIALIZED VIEW z_first AS SELECT id % 10 AS d, count(*) AS n FROM tree GROUP BY 1;
CREATE MATERIALIZED VIEW a_second AS SELECT sum(n) AS n FROM z_first;
CREATE MATERIALIZED VIEW by_key_m AS SELECT b.id, b.v, count(*) AS n FROM base b JOIN tree USING (id) GROUP BY b.id;
CREATE MATERIALIZED VIEW never AS SELECT 1 AS one WITH NO DATA;
CREATE UNIQUE INDEX ON z_first (d);
CREATE INDEX on_by_key_m ON by_key_m (id);
CREATE RULE quiet AS ON DELETE TO base DO INSTEAD NOTHING;
ALTER TABLE tree ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tree FOR SELECT TO app_reader USING (id > 5);
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''%'', tg_tag; END';
CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watch();

GRANT SELECT ON ALL TABLES IN SCHEMA public TO app_reader;
GRANT SELECT (id), UPDATE (parent) ON tree TO PUBLIC;
GRANT USAGE ON SCHEMA "Übel ""x"".y" TO app_reader WITH GRANT OPTION;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA "select" GRANT INSERT ON TABLES TO app_reader;
ALTER TABLE tree OWNER TO app_owner;
ALTER SEQUENCE notes_id_seq OWNER TO postgres;
CREATE SEQUENCE lone INCREMENT -3 START 1000 MINVALUE -5 MAXVALUE 1000 CACHE 7 CYCLE OWNED BY NONE;
COMMENT ON TABLE types IS 'all of them';
COMMENT ON SCHEMA public IS 'not the standard one';
CREATE SCHEMA foreshard;
CREATE TABLE foreshard.control (id int PRIMARY KEY);
CREATE PUBLICATION mine FOR TABLE tree;
