-- The login with which Grafana reads the reporting views: no table, two seconds a statement. Safe to run again.
\set ledger_password `echo "$GRAFANA_LEDGER_PASSWORD"`
SELECT 'CREATE ROLE grafana LOGIN IN ROLE hotrefresh_dashboard'
WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'grafana') \gexec
ALTER ROLE grafana PASSWORD :'ledger_password';
ALTER ROLE grafana SET statement_timeout = '2s';
