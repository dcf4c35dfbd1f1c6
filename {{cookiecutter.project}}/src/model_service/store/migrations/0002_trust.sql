-- Every load says how it came about, under which rules it was read, and what was checked. Expand only: the code before
-- this file goes on working.

ALTER TABLE load
    ADD COLUMN kind         text NOT NULL DEFAULT 'fetch' CHECK (kind IN ('fetch', 'late', 'correction', 'retry')),
    ADD COLUMN status       text NOT NULL DEFAULT 'committed' CHECK (status IN ('committed', 'marked', 'blocked')),
    ADD COLUMN origin       bigint REFERENCES load,  -- the first-hand load whose kept bytes are read again
    ADD COLUMN rules        jsonb,                   -- options and checks: with the kept bytes they give the same cells
    ADD COLUMN observed_at  timestamptz,             -- known_from of cells that no vintage dates
    ADD COLUMN scope        text[] NOT NULL DEFAULT '{}',  -- what the payload speaks of, by native name
    ADD COLUMN complete     boolean NOT NULL DEFAULT false,  -- all there is of its scope: what it lacks has vanished
    ADD COLUMN vanished     bigint NOT NULL DEFAULT 0,
    ADD COLUMN code_version text,
    ADD COLUMN who          text,
    ADD COLUMN reason       text;
UPDATE load SET kind = 'late' WHERE replay_for IS NOT NULL;
UPDATE load l SET origin = o.load_id FROM load o
    WHERE l.kind = 'late' AND o.load_key = split_part(l.load_key, ' ', 1);
CREATE INDEX load_origin ON load (origin);

-- Rows lie in the order of their loads, so this finds a load's rows at almost no cost.
CREATE INDEX observation_load ON observation USING brin (load_id) WITH (autosummarize = on);

ALTER TABLE quarantine ADD COLUMN valid_time timestamptz;
CREATE INDEX quarantine_load ON quarantine (load_id);

-- What was done about a quarantined cell; the cell itself stays.
CREATE TABLE quarantine_action (
    action_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    quarantine_id bigint NOT NULL REFERENCES quarantine,
    action        text NOT NULL CHECK (action IN ('replay', 'drop')),
    load_id       bigint REFERENCES load DEFERRABLE INITIALLY DEFERRED,
    who           text NOT NULL,
    reason        text NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX quarantine_action_of ON quarantine_action (quarantine_id);

CREATE TABLE check_result (
    load_id  bigint NOT NULL REFERENCES load DEFERRABLE INITIALLY DEFERRED,
    rule     text NOT NULL,
    subject  text NOT NULL,
    action   text NOT NULL CHECK (action IN ('block', 'mark', 'warn')),
    ok       boolean NOT NULL,
    figure   double precision,
    bound    double precision,
    detail   text NOT NULL,
    PRIMARY KEY (load_id, rule, subject)
);

-- Derived data that is stored names its inputs (the pair of clocks), its model and its code.
ALTER TABLE forecast ADD COLUMN code_version text;

-- How a file or page looked when it was last read (size and time, or ETag): what looks the same is not read again.
CREATE TABLE resource (
    resource_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset     text NOT NULL,
    name        text NOT NULL,
    mark        text NOT NULL,
    rules_hash  text NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX resource_name ON resource (dataset, name, resource_id DESC);

ALTER TABLE attempt DROP CONSTRAINT attempt_outcome_check;
ALTER TABLE attempt ADD CONSTRAINT attempt_outcome_check CHECK (outcome IN ('done', 'nothing new', 'failed', 'blocked'));

GRANT SELECT ON ALL TABLES IN SCHEMA public TO model_reader, model_loader;
GRANT INSERT ON quarantine_action, check_result, resource TO model_loader;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO model_loader;

-- Statistics and visibility are renewed after a load; before version 17 that is the owner's and autovacuum's work.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN
        GRANT MAINTAIN ON observation, load TO model_loader;
    END IF;
END $$;
