// Search in the catalogue: an ARIA combobox. Emits search {words} while typing, open {item_id} for a selection.

export default {
  template: `
    <div class="ac-search" role="search" @keydown.esc="close" @focusout="leave">
      <label class="ac-sr" for="search-field">Search the shop</label>
      <input id="search-field" type="search" v-model="words" placeholder="Search the shop" maxlength="100" autocomplete="off"
             role="combobox" aria-controls="search-results" :aria-expanded="open ? 'true' : 'false'" aria-autocomplete="list"
             :aria-activedescendant="open && active >= 0 ? 'result-' + active : undefined"
             @input="type" @keydown.down.prevent="move(1)" @keydown.up.prevent="move(-1)" @keydown.enter.prevent="choose(active < 0 ? 0 : active)">
      <ul id="search-results" role="listbox" aria-label="Search results" v-show="open">
        <li v-for="(item, n) in results" :key="item.id" :id="'result-' + n" role="option" :aria-selected="n === active ? 'true' : 'false'"
            :data-result="item.id" @mousedown.prevent="choose(n)">
          <i :style="{'--hue': item.hue}"></i><span>{{ item.title }}<small>{{ item.category }}</small></span></li>
        <li v-if="!results.length" role="option" aria-disabled="true" aria-selected="false">No results for “{{ answered }}”</li>
      </ul>
    </div>`,
  props: { results: Array, answered: String },
  data() {
    return { words: "", active: -1, closed: false };
  },
  computed: {
    open() {
      return !this.closed && this.answered !== "" && this.words.trim() !== "";
    },
  },
  methods: {
    type() {
      this.closed = false;
      this.active = -1;
      this.$emit("search", { words: this.words });
    },
    move(by) {
      const count = this.results.length;
      if (count) this.active = (this.active + by + count) % count;
    },
    choose(n) {
      const item = this.results[n];
      if (!item || !this.open) return;
      this.close();
      this.$emit("open", { item_id: item.id });
    },
    close() {
      this.closed = true;
    },
    leave(event) {
      if (!this.$el.contains(event.relatedTarget)) this.close();
    },
  },
};
