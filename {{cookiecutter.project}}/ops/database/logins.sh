#!/bin/sh
# Roles and logins of the stack's database, with the passwords of the environment. Runs when the volume is new and at every `make up`:
# so .env stays the truth. \getenv keeps passwords out of the process list, the first lines out of the server's log.
psql -v ON_ERROR_STOP=1 -qX -U postgres -d "${POSTGRES_DB:-postgres}" <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET client_min_messages = warning;
\getenv postgres POSTGRES_PASSWORD
\getenv loader LOADER_PASSWORD
\getenv reader READER_PASSWORD
SELECT format('CREATE ROLE %I NOLOGIN', role) FROM unnest(ARRAY['model_owner', 'model_loader', 'model_reader']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec
SELECT format('CREATE ROLE %I LOGIN', login) FROM unnest(ARRAY['loader', 'reader']) AS login
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) \gexec
GRANT model_loader, model_reader TO loader;
GRANT model_reader TO reader;
ALTER ROLE postgres PASSWORD :'postgres';
ALTER ROLE loader PASSWORD :'loader';
ALTER ROLE reader PASSWORD :'reader';
SQL
