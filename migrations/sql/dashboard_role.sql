-- The role that may read the reporting views and nothing else.
-- A managed database may not let us create roles: then the views exist and the role is the administrator's to make.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'hotrefresh_dashboard') THEN
        CREATE ROLE hotrefresh_dashboard NOLOGIN;
    END IF;
    GRANT USAGE ON SCHEMA reporting TO hotrefresh_dashboard;
    GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO hotrefresh_dashboard;
    ALTER ROLE hotrefresh_dashboard SET statement_timeout = '2s';
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'no right to create the role hotrefresh_dashboard: create it and grant SELECT on schema reporting';
END
$$
