-- Every training run is a row, also one that was refused; every change in a model's life is another. Expand only.

CREATE TABLE training_run (
    run_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    finished_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seconds      double precision NOT NULL,
    who          text NOT NULL,
    outcome      text NOT NULL CHECK (outcome IN ('passed', 'overruled', 'blocked')),
    version      integer REFERENCES model,  -- null where the gate refused
    known_at     timestamptz NOT NULL,
    data_version text NOT NULL,
    parameters   jsonb NOT NULL,            -- target, features, train and gate as declared; what a search chose
    figures      jsonb NOT NULL,            -- errors and coverage of the backtest, and how it was made
    gate         jsonb NOT NULL,            -- every rule with figure and limit
    provenance   jsonb NOT NULL,            -- commit, sources, locks, platform
    page         text                       -- the report, one HTML page
);
CREATE INDEX training_run_version ON training_run (version);

-- What became of each model; its newest row is its state. Nothing is taken back.
CREATE TABLE transition (
    transition_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version       integer NOT NULL REFERENCES model,
    state_from    text CHECK (state_from IN ('candidate', 'challenger', 'champion', 'retired')),
    state_to      text NOT NULL CHECK (state_to IN ('candidate', 'challenger', 'champion', 'retired')),
    action        text NOT NULL,
    who           text NOT NULL,
    reason        text NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX transition_version ON transition (version, transition_id DESC);

-- Who is champion is said by the last row of `promotion`, which the code before this file writes as well: so the log
-- follows it by a trigger, whoever promotes.
CREATE FUNCTION transitions_of(one promotion) RETURNS void LANGUAGE sql AS $$
    INSERT INTO transition (version, state_from, state_to, action, who, reason, at)
    SELECT part.version,
           (SELECT t.state_to FROM transition t WHERE t.version = part.version ORDER BY t.transition_id DESC LIMIT 1),
           part.state, (one).action, (one).who, part.reason, (one).at
    FROM (VALUES ((one).version, 'champion', (one).reason),
                 ((one).previous, 'retired', format('replaced by model %s', (one).version))) part (version, state, reason)
    WHERE part.version IS NOT NULL
$$;
INSERT INTO transition (version, state_to, action, who, reason, at)
    SELECT version, 'candidate', 'register', 'unknown', 'registered before this log began', created_at
    FROM model ORDER BY version;
SELECT transitions_of(one) FROM (SELECT p FROM promotion p ORDER BY promotion_id) AS ordered (one);
CREATE FUNCTION promotion_is_a_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM transitions_of(NEW);
    RETURN NULL;
END $$;
CREATE TRIGGER promotion_is_a_transition AFTER INSERT ON promotion
    FOR EACH ROW EXECUTE FUNCTION promotion_is_a_transition();

GRANT SELECT ON ALL TABLES IN SCHEMA public TO model_reader, model_loader;
GRANT INSERT ON training_run, transition TO model_loader;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO model_loader;

-- What a forecast was made of, and whether its model had seen later knowledge: such a one is no evidence.
ALTER TABLE forecast ADD COLUMN inputs_known_until timestamptz, ADD COLUMN hindsight boolean;
CREATE INDEX forecast_of ON forecast (model_digest, known_at);
