-- When a provider may be asked again: one row each, shared by all copies of the loader. Expand only.

CREATE TABLE pace (
    provider text PRIMARY KEY,
    free_at  timestamptz NOT NULL
);

GRANT SELECT ON pace TO model_reader, model_loader;
GRANT INSERT, UPDATE ON pace TO model_loader;
