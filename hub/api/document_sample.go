//go:build samplekind

package api

func init() { Documents["sample"] = SampleDocument{} }

// SampleDocument is a text for the nodes of a site. It is the example of a kind of declared
// objects, in builds with the tag samplekind alone.
type SampleDocument struct {
	Kind       string `json:"kind"` // sample
	Name       string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	SampleSpec `yaml:",inline"`
}

// SampleSpec is the spec of a sample.
type SampleSpec struct {
	Site string `json:"site"` // whose nodes are told
	Text string `json:"text"` // what they are told; agents refuse 'no'
}
