package api

import "causeway/protocol"

// ServiceDocument is one name and address for what runs at several sites. Each client's node spreads and switches its traffic.
type ServiceDocument struct {
	Kind        string `json:"kind"` // service
	Name        string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	ServiceSpec `yaml:",inline"`
}

// ServiceSpec is a service, with what the hub gives it: its addresses, and its epoch. A document need not say these; one
// that does says those that it has.
type ServiceSpec struct {
	protocol.Service `yaml:",inline"`
	Epoch            uint64                 `json:"epoch,omitempty"` // of single-writer the transaction that chose the writer; the hub gives it
	Public           protocol.ServicePublic `json:"public,omitzero"` // by which name and addresses the outside finds it
}
