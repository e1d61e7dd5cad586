PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
BEGIN TRANSACTION;
CREATE TABLE memories (
	principal VARCHAR NOT NULL,
	namespace VARCHAR NOT NULL,
	memory_id VARCHAR NOT NULL,
	seq INTEGER NOT NULL,
	digest VARCHAR NOT NULL,
	version INTEGER NOT NULL,
	content TEXT NOT NULL,
	memory_type VARCHAR,
	metadata TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	expires_at BIGINT,
	deleted BOOLEAN NOT NULL,
	PRIMARY KEY (principal, namespace, memory_id)
);
INSERT INTO "memories" VALUES('local','default','mem_1',4,'7336f69223921dd5294e0d8a84e96fc2cefd58e2cd280dcccba3619328629fb4',2,'Ana likes green tea.','fact','{"title":"Ünïcödé ☕"}',1767225600004000,1767225600018000,NULL,0);
INSERT INTO "memories" VALUES('local','default','mem_2',5,'1e29c670dda42f01eedf68273d5623052b7c9723db4cd6e58b585d3ad4716ef4',2,'Bo drives.',NULL,'{}',1767225600009000,1767225600021000,NULL,1);
INSERT INTO "memories" VALUES('local','default','mem_3',3,'41fa7b0b25b0d9094b26d0a563bfd90add1ab47dd8c26f47614ec6331117a32e',1,'Parcel comes.',NULL,'{"expires_at":"2026-01-02T00:00:00Z"}',1767225600015000,1767225600015000,1767312000000000,0);
INSERT INTO "memories" VALUES('ana','other','mem_1',6,'47907ef8bbdf878b43fa2671d4bc7db01ad250fc339e18b359f8df9cc0824f62',1,'It''s another''s; with a quote',NULL,'{}',1767225600026000,1767225600026000,NULL,0);
CREATE TABLE operations (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	principal VARCHAR NOT NULL,
	namespace VARCHAR NOT NULL,
	memory_id VARCHAR NOT NULL,
	kind VARCHAR NOT NULL,
	actor VARCHAR NOT NULL,
	session_id VARCHAR,
	at BIGINT NOT NULL,
	version INTEGER NOT NULL,
	content TEXT NOT NULL,
	memory_type VARCHAR,
	metadata TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	updated_at BIGINT NOT NULL,
	expires_at BIGINT,
	deleted BOOLEAN NOT NULL
);
INSERT INTO "operations" VALUES(1,'local','default','mem_1','add','policy','ctx_1',1767225600005000,1,'Ana likes tea.','fact','{"title":"Ünïcödé ☕","n":[1,2.5,true]}',1767225600004000,1767225600004000,NULL,0);
INSERT INTO "operations" VALUES(2,'local','default','mem_2','add','policy',NULL,1767225600010000,1,'Bo drives.',NULL,'{}',1767225600009000,1767225600009000,NULL,0);
INSERT INTO "operations" VALUES(3,'local','default','mem_3','add','policy',NULL,1767225600016000,1,'Parcel comes.',NULL,'{"expires_at":"2026-01-02T00:00:00Z"}',1767225600015000,1767225600015000,1767312000000000,0);
INSERT INTO "operations" VALUES(4,'local','default','mem_1','update','user',NULL,1767225600019000,2,'Ana likes green tea.','fact','{"title":"Ünïcödé ☕"}',1767225600004000,1767225600018000,NULL,0);
INSERT INTO "operations" VALUES(5,'local','default','mem_2','delete','policy',NULL,1767225600022000,2,'Bo drives.',NULL,'{}',1767225600009000,1767225600021000,NULL,1);
INSERT INTO "operations" VALUES(6,'ana','other','mem_1','add','policy',NULL,1767225600027000,1,'It''s another''s; with a quote',NULL,'{}',1767225600026000,1767225600026000,NULL,0);
CREATE TABLE properties (
	name VARCHAR NOT NULL,
	value TEXT,
	PRIMARY KEY (name)
);
INSERT INTO "properties" VALUES('ledger_id','aabcab8009f443e0a8f6ce04f8ea0b7d');
CREATE TABLE scopes (
	principal VARCHAR NOT NULL,
	namespace VARCHAR NOT NULL,
	created INTEGER NOT NULL,
	PRIMARY KEY (principal, namespace)
);
INSERT INTO "scopes" VALUES('local','default',3);
INSERT INTO "scopes" VALUES('ana','other',1);
CREATE INDEX operations_by_memory ON operations (principal, namespace, memory_id, seq);
CREATE INDEX ix_memories_seq ON memories (seq);
CREATE INDEX memories_by_change ON memories (principal, namespace, seq);
CREATE INDEX memories_by_digest ON memories (principal, namespace, digest);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('operations',6);
COMMIT;
